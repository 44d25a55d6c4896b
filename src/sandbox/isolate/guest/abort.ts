/** Event, EventTarget, AbortController, AbortSignal and DOMException, as small as programs that cancel their own work need them. */

export class DOMException extends Error {
  constructor(message = '', name = 'Error') {
    super(String(message));
    Object.defineProperty(this, 'name', { value: String(name), configurable: true, writable: true });
  }
}

export class Event {
  readonly type: string;
  target: unknown = null;
  defaultPrevented = false;

  constructor(type: unknown) {
    this.type = String(type);
  }

  preventDefault(): void {
    this.defaultPrevented = true;
  }
}

type Listener = ((event: Event) => void) | { handleEvent(event: Event): void };

export class EventTarget {
  readonly #listeners = new Map<string, Map<Listener, boolean>>();

  addEventListener(type: string, listener: Listener | null, options?: boolean | { once?: boolean; signal?: AbortSignal }): void {
    if (listener === null) return;
    const { once = false, signal } = typeof options === 'object' ? options : {};
    if (signal?.aborted === true) return;
    let ofType = this.#listeners.get(type);
    if (ofType === undefined) this.#listeners.set(type, (ofType = new Map()));
    if (!ofType.has(listener)) ofType.set(listener, once);
    signal?.addEventListener('abort', () => this.removeEventListener(type, listener), { once: true });
  }

  removeEventListener(type: string, listener: Listener | null): void {
    if (listener !== null) this.#listeners.get(type)?.delete(listener);
  }

  dispatchEvent(event: Event): boolean {
    event.target = this;
    for (const [listener, once] of [...(this.#listeners.get(event.type) ?? [])]) {
      if (once) this.removeEventListener(event.type, listener);
      if (typeof listener === 'function') listener.call(this, event);
      else listener.handleEvent(event);
    }
    return !event.defaultPrevented;
  }
}

let abort: (signal: AbortSignal, reason: unknown) => void;
let create: () => AbortSignal;
const secret = {};

export function abortApi(setTimer: (fire: () => void, ms: number) => unknown): { AbortController: unknown; AbortSignal: unknown } {
  timer = setTimer;
  return { AbortController, AbortSignal };
}
let timer: (fire: () => void, ms: number) => unknown = () => undefined;

export class AbortSignal extends EventTarget {
  #aborted = false;
  #reason: unknown;
  onabort: ((event: Event) => void) | null = null;

  static {
    abort = (signal, reason) => {
      if (signal.#aborted) return;
      signal.#aborted = true;
      signal.#reason = reason === undefined ? new DOMException('This operation was aborted', 'AbortError') : reason;
      const event = new Event('abort');
      signal.onabort?.(event);
      signal.dispatchEvent(event);
    };
    create = () => new AbortSignal(secret);
  }

  constructor(key?: unknown) {
    super();
    if (key !== secret) throw new TypeError('Illegal constructor');
  }

  get aborted(): boolean {
    return this.#aborted;
  }

  get reason(): unknown {
    return this.#reason;
  }

  throwIfAborted(): void {
    if (this.#aborted) throw this.#reason;
  }

  static abort(reason?: unknown): AbortSignal {
    const signal = create();
    abort(signal, reason);
    return signal;
  }

  static timeout(ms: number): AbortSignal {
    const signal = create();
    timer(() => abort(signal, new DOMException('The operation was aborted due to timeout', 'TimeoutError')), ms);
    return signal;
  }

  static any(signals: Iterable<AbortSignal>): AbortSignal {
    const joined = create();
    for (const signal of signals) {
      if (signal.aborted) {
        abort(joined, signal.reason);
        break;
      }
      signal.addEventListener('abort', () => abort(joined, signal.reason), { once: true });
    }
    return joined;
  }
}

export class AbortController {
  readonly signal = create();

  abort(reason?: unknown): void {
    abort(this.signal, reason);
  }
}
