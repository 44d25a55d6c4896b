/**
 * Planted bugs: each is a small mistake that somebody could make in a core or its driver, made by the simulation around the unchanged
 * core. A simulation that finds nothing proves something only if it finds each of these; the tests ask that.
 */
import type { HeadBugs } from './head-machine.ts';
import type { LogBugs } from './disk-machine.ts';

export interface Bugs {
  readonly log: LogBugs;
  readonly head: HeadBugs;
  /** Replies do not wait for the audit record behind them. */
  readonly repliesEarly?: boolean;
  /** What a dead worker held is not given back. */
  readonly keepsResources?: boolean;
  /** Reads of another tenant's objects pass. */
  readonly skipsWall?: boolean;
  /** RELEASE frames of drivers are passed over. */
  readonly dropsReleases?: boolean;
  /** A ref is given back twice. */
  readonly releasesTwice?: boolean;
  /** Submitted tasks count twice in their tenant's quota. */
  readonly countsTwice?: boolean;
  /** An older policy that comes late replaces the newer one. */
  readonly stalePolicy?: boolean;
  /** Some deaths of workers are never heard of. */
  readonly losesExits?: boolean;
  /** The head forgets what shares of quotas nodes hold. */
  readonly forgetsShares?: boolean;
  /** Quotas of tenants are known and not held. */
  readonly ignoresQuota?: boolean;
  /** Revocations come into force and end no job. */
  readonly forgetsRevoked?: boolean;
  /** A batch for a driver is sent again after a delay. */
  readonly answersTwice?: boolean;
  /** Copies on disk of objects that are gone stay there. */
  readonly keepsSpills?: boolean;
  /** What comes back from disk may be another tenant's. */
  readonly restoresAnother?: boolean;
  /** An item of a stream does not come. */
  readonly losesItems?: boolean;
  /** Actors that are to live on are made as others are. */
  readonly forgetsDetached?: boolean;
  /** Other nodes are not told to make reserved bundles firm, or to give them back. */
  readonly losesCommits?: boolean;
  readonly keepsBundles?: boolean;
  /** Quotas of projects are known and not held. */
  readonly ignoresProjects?: boolean;
  /** Sessions go on when their credential has ended. */
  readonly ignoresExpiry?: boolean;
  /** A lost connection to another node is not told to the core. */
  readonly losesLinkLoss?: boolean;
}

const NONE: Bugs = { log: {}, head: {} };
export const NO_BUGS = NONE;

export const CANARIES: Readonly<Record<string, Bugs>> = {
  'a reply before its audit record is durable': { ...NONE, repliesEarly: true },
  'records durable before the disk was synced': { ...NONE, log: { durableBeforeSync: true } },
  'a torn write takes a whole batch of records along': { ...NONE, log: { cutsTooMuch: true } },
  'a record that is lost on its way to the log': { ...NONE, log: { losesEvery: 40 } },
  'resources that a dead worker does not give back': { ...NONE, keepsResources: true },
  'the tenant wall skipped on one path': { ...NONE, skipsWall: true },
  'releases that are dropped': { ...NONE, dropsReleases: true },
  'a ref given back twice': { ...NONE, releasesTwice: true },
  'a quota that counts twice': { ...NONE, countsTwice: true },
  'a quota that does not hold': { ...NONE, ignoresQuota: true },
  'a share of a quota given out twice': { ...NONE, forgetsShares: true },
  'a stale policy version accepted': { ...NONE, stalePolicy: true },
  'a revocation that ends nothing': { ...NONE, forgetsRevoked: true },
  'the death of a worker unheard of': { ...NONE, losesExits: true },
  'the loss of a link unheard of': { ...NONE, losesLinkLoss: true },
  'an answer given twice': { ...NONE, answersTwice: true },
  'a copy on disk that outlives its object': { ...NONE, keepsSpills: true },
  'another tenant’s object back from disk': { ...NONE, restoresAnother: true },
  'an item of a stream that is lost': { ...NONE, losesItems: true },
  'a detached actor that goes with its driver': { ...NONE, forgetsDetached: true },
  'a bundle that is not made firm': { ...NONE, losesCommits: true },
  'a bundle that is not given back': { ...NONE, keepsBundles: true },
  'a project’s quota that does not hold': { ...NONE, ignoresProjects: true },
  'a credential that ends and nothing with it': { ...NONE, ignoresExpiry: true },
  'rows of the head before their record': { ...NONE, head: { rowsFirst: true } },
};
