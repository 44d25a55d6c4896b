/** The thread of one check of a policy file: takes a request, posts the result, ends. Must never: touch a file, a socket or the head's state. */
import { parentPort, workerData } from 'node:worker_threads';
import { checkNow, type CheckRequest } from './policy-check.ts';

parentPort?.postMessage(checkNow(workerData as CheckRequest));
