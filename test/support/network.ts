/**
 * A network of Linux network namespaces for the processes of a test cluster: each member has its own stack, all meet on a bridge in one more. A cut is
 * silent, as a broken cable is: frames of one member for another go to an address that nobody has. Needs root. It is gone with the process that
 * made it, since namespaces live as long as their holders, which live as long as a pipe.
 */
import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';

/** RFC 2544: of no real network. */
const SUBNET = '198.18.77';
const NOBODY = '02:00:00:00:4d:ff';

interface Member {
  readonly ip: string;
  readonly mac: string;
  /** Undefined: this process's own stack. */
  readonly holder: ChildProcess | undefined;
  readonly device: string;
}

function ip(within: ChildProcess | undefined, line: string): void {
  const words = line.split(' ');
  const [program = '', ...args] = within === undefined ? ['ip', ...words] : ['nsenter', `--net=/proc/${within.pid}/ns/net`, 'ip', ...words];
  execFileSync(program, args, { stdio: ['ignore', 'ignore', 'pipe'] });
}

async function holder(): Promise<ChildProcess> {
  const child = spawn('unshare', ['--net', 'sh', '-c', 'echo; read -r line'], { stdio: ['pipe', 'pipe', 'ignore'] });
  await once(child.stdout, 'data');
  return child;
}

export class TestNetwork implements AsyncDisposable {
  readonly #members = new Map<string, Member>();
  readonly #switch: ChildProcess;

  private constructor(bridge: ChildProcess) {
    this.#switch = bridge;
  }

  /** `clients` is this process. */
  static async create(names: readonly string[]): Promise<TestNetwork> {
    const network = new TestNetwork(await holder());
    try {
      ip(network.#switch, 'link add br0 type bridge');
      ip(network.#switch, 'link set br0 up');
      for (const [i, name] of ['clients', ...names].entries()) {
        const own = name === 'clients' ? undefined : await holder();
        const member: Member = { ip: `${SUBNET}.${i + 1}`, mac: `02:00:00:00:4d:${(i + 1).toString(16).padStart(2, '0')}`, holder: own, device: own === undefined ? `bh${process.pid}` : 'eth0' };
        network.#members.set(name, member);
        ip(network.#switch, `link add p${i} type veth peer name ${member.device} netns ${own?.pid ?? process.pid}`);
        ip(network.#switch, `link set p${i} master br0 up`);
        ip(own, `link set ${member.device} address ${member.mac}`);
        ip(own, `addr add ${member.ip}/24 dev ${member.device}`);
        ip(own, `link set ${member.device} up`);
        if (own !== undefined) ip(own, 'link set lo up');
      }
      for (const from of network.#members.keys()) for (const to of network.#members.keys()) if (from !== to) network.#route(from, to, true);
      return network;
    } catch (thrown) {
      await network[Symbol.asyncDispose]();
      throw thrown;
    }
  }

  #member(name: string): Member {
    const member = this.#members.get(name);
    if (member === undefined) throw new Error(`${name} is not in the network`);
    return member;
  }

  #route(from: string, to: string, whole: boolean): void {
    const sender = this.#member(from);
    const receiver = this.#member(to);
    ip(sender.holder, `neigh replace ${receiver.ip} lladdr ${whole ? receiver.mac : NOBODY} dev ${sender.device} nud permanent`);
  }

  address(name: string): string {
    return this.#member(name).ip;
  }

  /** The command in front of one that is to run in a member's stack. */
  through(name: string): string[] {
    return ['nsenter', `--net=/proc/${this.#member(name).holder?.pid}/ns/net`, '--'];
  }

  /** Nothing that `from` sends reaches `to` any more; the other way stays. */
  cutOneWay(from: string, to: string): void {
    this.#route(from, to, false);
  }

  cut(a: string, b: string): void {
    this.cutOneWay(a, b);
    this.cutOneWay(b, a);
  }

  heal(): void {
    for (const from of this.#members.keys()) for (const to of this.#members.keys()) if (from !== to) this.#route(from, to, true);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const holders = [...[...this.#members.values()].flatMap((m) => m.holder ?? []), this.#switch];
    await Promise.all(holders.map((child) => {
      const gone = once(child, 'exit');
      child.stdin?.end();
      return gone;
    }));
  }
}
