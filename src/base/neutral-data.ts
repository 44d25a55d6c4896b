/**
 * Values of other languages that JavaScript has no type for: arrays with a shape (numpy's) and Arrow tables. Plain holders of octets, in drivers and isolates.
 * Must never: parse what they hold, or trust it to be what its maker said beyond shape and size.
 */
import { BulkheadError } from './errors.ts';

export type TypedArray = Int8Array | Uint8Array | Uint8ClampedArray | Int16Array | Uint16Array | Int32Array | Uint32Array | Float32Array | Float64Array | BigInt64Array | BigUint64Array;

const MAX_DIMENSIONS = 32;

/** An array with a shape: numpy's `ndarray` of other than one dimension. `data` is in row order ('C'), or in column order ('F'). */
export class NdArray<T extends TypedArray = TypedArray> {
  readonly shape: readonly number[];
  readonly data: T;
  readonly order: 'C' | 'F';

  /** Throws INVALID_ARGUMENT when shape and data do not agree. */
  constructor(shape: readonly number[], data: T, order: 'C' | 'F' = 'C') {
    let size = 1;
    for (const n of shape) {
      if (!Number.isSafeInteger(n) || n < 0) throw new BulkheadError('INVALID_ARGUMENT', `a dimension of ${n} in the shape of an NdArray: give whole numbers`);
      size *= n;
    }
    if (shape.length > MAX_DIMENSIONS) throw new BulkheadError('INVALID_ARGUMENT', `an NdArray of ${shape.length} dimensions: at most ${MAX_DIMENSIONS}`);
    if (data.length !== size) throw new BulkheadError('INVALID_ARGUMENT', `an NdArray of shape [${shape.join(', ')}] has ${size} elements, and ${data.length} are given`);
    this.shape = Object.freeze(shape.slice());
    this.data = data;
    this.order = order;
  }
}

/** A table in Arrow's streaming format: `tableFromIPC(table.ipc)` of apache-arrow reads it, `new ArrowTable(tableToIPC(table))` makes one. Python gets a `pyarrow.Table`. */
export class ArrowTable {
  readonly ipc: Uint8Array;

  constructor(ipc: Uint8Array) {
    this.ipc = ipc;
  }
}
