/** The few lines between the worker host and the guest prelude inside each context. */
import { LOCKDOWN_SOURCE } from './lockdown.ts';

/**
 * The script of a context: an expression whose value is a function that installs the prelude, closes the globals and returns what the
 * host may call. `prelude` is an expression too, whose value is its `install`.
 *  - What `deliver` returns is emitted the same way as everything else: a returned value would reach the host after what microtasks
 *    emit, and frames must keep their order.
 *  - The prelude catches whatever tenant code throws; what escapes it all the same is announced (kind 4) before it is thrown, so that the host
 *    can tell it from a rejection that tenant code left unhandled.
 *  - An emit returns at once, but after every 256 KiB one waits until the host has taken it: a flood fills no queue of the host's. In an entry on the
 *    host's own thread each is taken at once.
 * Must never: hand anything to the host but numbers and ArrayBuffers, or keep a name that tenant code can reach.
 */
export function bridgeSource(prelude: string): string {
  return `((install) => (send, sendAndWait, config) => {
  'use strict';
  const { apply, getOwnPropertyDescriptor } = Reflect;
  const byteLength = getOwnPropertyDescriptor(ArrayBuffer.prototype, 'byteLength').get;
  let unacknowledged = 0;
  let inline = false;
  const emit = (kind, n, bytes) => {
    unacknowledged += 64 + (bytes === undefined ? 0 : apply(byteLength, bytes, []));
    if (!inline && unacknowledged < ${256 * 1024}) send(kind, n, bytes);
    else {
      unacknowledged = 0;
      sendAndWait(kind, n, bytes);
    }
  };
  const { deliver, attach, fireTimer, load } = install(emit, config);
  ${LOCKDOWN_SOURCE}
  const whole = (enter) => (a, b, onHostThread) => {
    inline = onHostThread === true;
    try {
      enter(a, b);
    } catch (thrown) {
      send(4, 0, undefined);
      throw thrown;
    }
  };
  return {
    deliver: whole((batch) => {
      const frames = deliver(batch);
      if (frames !== undefined) emit(0, 0, frames);
    }),
    attach: whole(attach),
    fireTimer: whole(fireTimer),
    load: whole(load),
  };
})(${prelude.trim().replace(/;$/, '')})`;
}
