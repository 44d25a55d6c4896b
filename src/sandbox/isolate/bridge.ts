/** The few lines between the worker host and the guest prelude inside each context. */
import { LOCKDOWN_SOURCE } from './lockdown.ts';

/**
 * The script of a context: an expression whose value is a function that installs the prelude, closes the globals and returns what the
 * host may call. `prelude` is an expression too, whose value is its `install`.
 *  - What `deliver` returns is emitted the same way as everything else: a returned value would reach the host after what microtasks
 *    emit, and frames must keep their order.
 *  - An emit returns at once, but after every 256 KiB one waits until the host has taken it: a flood fills no queue of the host's.
 * Must never: hand anything to the host but numbers and ArrayBuffers, or keep a name that tenant code can reach.
 */
export function bridgeSource(prelude: string): string {
  return `((install) => (send, sendAndWait, config) => {
  'use strict';
  const { apply, getOwnPropertyDescriptor } = Reflect;
  const byteLength = getOwnPropertyDescriptor(ArrayBuffer.prototype, 'byteLength').get;
  let unacknowledged = 0;
  const emit = (kind, n, bytes) => {
    unacknowledged += 64 + (bytes === undefined ? 0 : apply(byteLength, bytes, []));
    if (unacknowledged < ${256 * 1024}) send(kind, n, bytes);
    else {
      unacknowledged = 0;
      sendAndWait(kind, n, bytes);
    }
  };
  const { deliver, attach, fireTimer, load } = install(emit, config);
  ${LOCKDOWN_SOURCE}
  return {
    deliver: (batch) => {
      const frames = deliver(batch);
      if (frames !== undefined) emit(0, 0, frames);
    },
    attach: (attachment, bytes) => { attach(attachment, bytes); },
    fireTimer: (id) => { fireTimer(id); },
    load: (codeNumber, factory) => { load(codeNumber, factory); },
  };
})(${prelude.trim().replace(/;$/, '')})`;
}
