/**
 * Composition root of the gateway: HTTPS for clients that have a bearer token instead of an SVID. Its own identity lets it ask whose a token is, and nothing else; what clients ask for it does as
 * them. Must never: be given a right over a tenant's resources.
 */
import { pino } from 'pino';
import { ServerCertificate } from '../pki/pki.ts';
import { Identities, Tokens } from '../rpc/generated/bulkhead/v1/head_pb.js';
import { client, createHttpsListener, live, type RpcLog } from '../rpc/rpc.ts';
import { openHead } from '../sdk/head-client.ts';
import { Callers } from './callers.ts';
import { readGatewayConfig, type GatewayConfig } from './gateway-config.ts';
import { HttpDoor } from './http-door.ts';
import { Packages } from './packages.ts';
import { RayJobs } from './ray-jobs.ts';
import { Submissions } from './submissions.ts';

const CERTIFY_TIMEOUT_MS = 15_000;
/** The head shows one that it has heard of lately. */
const ANNOUNCE_MS = 30_000;

export interface RunningGateway {
  /** `https://name:port`, by the first name of its certificate that clients know without a directory. */
  readonly url: string;
  stop(): Promise<void>;
}

export async function startGateway(config: GatewayConfig, log: RpcLog): Promise<RunningGateway> {
  await using parts = new AsyncDisposableStack();
  const head = parts.use(await openHead({ profile: config.profile, address: config.headAddress }));
  let names: readonly string[] = [];
  const certificate = parts.use(await ServerCertificate.open({
    identity: head.identity, onError: (error) => log.warn({ error }, 'the certificate of the gateway could not be renewed; it is tried again'),
    certify: async (csr) => {
      const answer = await client(Identities, head.channel).certifyServer({ csr }, { timeoutMs: CERTIFY_TIMEOUT_MS });
      names = answer.dnsNames;
      return answer.chain;
    },
  }));
  const callers = parts.use(new Callers({ trustDomain: head.identity.trustDomain, headAddress: head.address, head: head.channel }));
  const submissions = new Submissions(log);
  parts.defer(() => submissions.close());
  const door = new HttpDoor({ callers, jobs: new RayJobs(submissions, new Packages()), names: () => names, log });
  const listener = createHttpsListener({ certificate, log, onRequest: door.onRequest, onUpgrade: door.onUpgrade });
  parts.defer(() => listener.close());
  const { port } = await listener.listen(config.listen);
  const url = `https://${names[1] ?? names[0] ?? 'localhost'}:${port}`;
  const announce = (): Promise<unknown> => client(Tokens, head.channel).announce({ url }, { timeoutMs: CERTIFY_TIMEOUT_MS });
  await announce();
  const timer = setInterval(() => void announce().catch((error: unknown) => log.warn({ error }, 'the head did not hear where the gateway is; it is told again')), ANNOUNCE_MS);
  parts.defer(() => clearInterval(timer));
  const stack = parts.move();
  return { url, stop: () => stack.disposeAsync() };
}

/** The process: configuration in on stdin, one ready line out, until SIGTERM or SIGINT. Exit codes: 0 stopped, 1 failed, 2 wrong configuration. */
export async function runGateway(): Promise<void> {
  const log = pino({ name: 'gateway', base: {}, serializers: { error: pino.stdSerializers.err } }, pino.destination({ dest: 2, sync: true }));
  await live({
    fatal: (error, message) => log.fatal({ error }, message), exitCodes: { INVALID_ARGUMENT: 2 },
    start: async () => {
      const { url, stop } = await startGateway(readGatewayConfig(), log);
      return { ready: { url }, stop };
    },
  });
}
