/** Every limit, in one file, with its unit and its reason. Overload answers RESOURCE_EXHAUSTED; nothing grows without one of these. */

/** A frame larger than this is refused and its channel closed; large values travel as chunks. */
export const MAX_FRAME_BYTES = 4 * 2 ** 20;
/** One gRPC message or one socket batch: a few frames of the largest size. */
export const MAX_BATCH_BYTES = 16 * 2 ** 20;
/** Values up to this size travel inside frames (Ray's own inline limit is 100 KiB); larger ones become tmpfs files. */
export const MAX_INLINE_BYTES = 100 * 2 ** 10;
/** Chunk of a large value on a stream: large enough for throughput, small enough that small calls slip between. */
export const CHUNK_BYTES = 512 * 2 ** 10;
/** One object. Bounded by what one isolate can hold as an ArrayBuffer. */
export const MAX_OBJECT_BYTES = 2 * 2 ** 30;
/** A value of another tenant that is copied for a task at once: all calls of the node wait for so long. */
export const MAX_COPY_BYTES = 64 * 2 ** 20;
/** Objects of a node that are being written to disk at once; more would only share the same disk. */
export const MAX_SPILLS_AT_ONCE = 16;
/** Objects from this size on are served to other raylets by those that have got them too; for smaller ones asking somebody else costs more than it saves. */
export const SPREAD_MIN_BYTES = 1 * 2 ** 20;
/** Raylets that one raylet sends the same object to at once; each of them serves as many when it has it, so N have it after log N turns. More would only share one link. */
export const SPREAD_FANOUT = 2;
/** Raylets that have it and let one down, before a raylet gets an object from its owner and nobody else. */
export const MAX_DETOURS = 2;
/** A raylet that was asked whether it can send a copy has said so by then. */
export const SHARE_ANSWER_MS = 2_000;
/** A copy that comes from another raylet than its owner is given up when it is so late, against so many octets a second. */
export const COPY_STALL_MS = 5_000;
export const COPY_BYTES_PER_SECOND = 1 * 2 ** 20;
/** The owner counts on a transfer for so long, and as long again as it takes at the pace above: after that somebody else's turn comes. */
export const SPREAD_LEASE_MS = 10_000;
/** Copies that one channel's owner has announced here and nobody has come for; the oldest are forgotten first. */
export const MAX_SHARES_PER_CHANNEL = 256;
/** Less memory for objects than this is no configuration, bytes. */
export const MIN_OBJECT_MEMORY_BYTES = 2 ** 20;
/** Disk that a node's spilled objects take, where its configuration says nothing, bytes. */
export const MAX_SPILL_BYTES = 64 * 2 ** 30;
/** One encrypted piece of a spilled object: as much as is held in memory to verify it. */
export const SPILL_CHUNK_BYTES = 1 * 2 ** 20;
/** What a tenant's calls leave behind so that their lost results can be computed again: octets of arguments on one node, and how many; the oldest go first. */
export const MAX_LINEAGE_BYTES_PER_TENANT = 64 * 2 ** 20;
export const MAX_LINEAGE_PER_TENANT = 10_000;
/** A lost object that needs a lost object that needs …: so deep, and each so often. */
export const MAX_RECONSTRUCTION_DEPTH = 32;
export const MAX_RECONSTRUCTIONS = 16;
/** Refs that gets and waits of one channel wait for at once. */
export const MAX_WAITING_PER_CHANNEL = 1_000_000;
/** Frames for one receiver are handed on when they are this many, so that no batch nears the limit of a message. */
export const CUT_BATCH_BYTES = 1 * 2 ** 20;
/** Values on their way to one client at a time; what else it asked for waits as a note of a few octets. */
export const MAX_ANSWER_BYTES = 4 * 2 ** 20;
export const MAX_CODE_BYTES = 16 * 2 ** 20;
/** Refs in one GET or WAIT; Ray programs wait on thousands. */
export const MAX_REFS_PER_CALL = 100_000;
/** Top-level refs among the arguments of one call. */
export const MAX_DEPENDENCIES = 1_024;
export const MAX_RETURNS = 64;
/** Items of one stream that its reader has not taken yet: as many small ones as hide a round trip with its record on disk, or as an option says. */
export const DEFAULT_STREAM_ITEMS = 4_096;
export const MAX_STREAM_ITEMS = 65_536;
/** A reader begins with so many, and asks for twice as many whenever it has to wait: whoever is slower than its generator has few ahead. */
export const FIRST_STREAM_ITEMS = 64;
/** The same in octets: the item that goes over it is the last until some are taken. */
export const DEFAULT_STREAM_BYTES = 4 * 2 ** 20;
export const MAX_STREAM_BYTES = 256 * 2 ** 20;
/** Methods of one class that are generators; their names go with every handle. */
export const MAX_STREAMING_METHODS = 64;
/** Items of a stream up to this size come with their value; of larger ones the reader gets the ref. */
export const MAX_PUSHED_BYTES = 16 * 2 ** 10;
/** Code of one tenant that a node keeps, in memory; what no function or actor uses goes first. */
export const MAX_CODE_BYTES_PER_TENANT = 256 * 2 ** 20;
/** Actor names of one tenant that a node asks the head about at once. */
export const MAX_NAME_CALLS_PER_TENANT = 256;
/** Output of one tenant's jobs that a node keeps; the oldest go first. */
export const MAX_LOG_BYTES_PER_TENANT = 512 * 2 ** 20;
/** Functions, classes and methods that one channel may define. */
export const MAX_TEMPLATES_PER_CHANNEL = 4_096;
/** Objects of one tenant that a node keeps account of, held here or known by a ref; beyond it new ones fail, and beyond twice this their channels end. */
export const MAX_OBJECTS_PER_TENANT = 1_000_000;
/** Different resource requests of one tenant's functions: the scheduler looks at each that has work whenever something happens. */
export const MAX_SCHEDULING_CLASSES_PER_TENANT = 256;
/** Of one tenant, with a quota of their own: all of them are looked at when its quotas change. */
export const MAX_PROJECTS_PER_TENANT = 64;
/** Calls per second that a quota can name; more is no limit on any node. */
export const MAX_CALLS_PER_SECOND = 10_000_000;
/** Of tasks, up and down from 0. */
export const MAX_PRIORITY = 100;
/** Labels of a node or of one selector, values of one condition, and selectors that one call may fall back to. */
export const MAX_LABELS = 32;
export const MAX_LABEL_VALUES = 32;
export const MAX_SELECTORS = 8;
/** Bundles of one placement group; groups of one tenant that a node coordinates; the JSON that describes one. */
export const MAX_BUNDLES_PER_GROUP = 256;
export const MAX_PLACEMENT_GROUPS_PER_TENANT = 1_000;
/** Placement groups that another raylet took over, whose old ids a node remembers. */
export const MAX_GROUP_HEIRS = 10_000;
export const MAX_GROUP_JSON_BYTES = 256 * 2 ** 10;
/** A node that was asked to reserve bundles has answered by then, or the round is given up; what was reserved and not made firm goes after twice this. */
export const BUNDLE_PREPARE_MS = 5_000;
/** A bundle whose coordinator's node is lost and in which nothing runs waits so long for another raylet to take its group over. */
export const ORPHANED_BUNDLE_MS = 60 * 60_000;
/** Octets of calls that are not finished, as they came: of one channel before its reads pause, of a tenant before new ones fail. */
export const MAX_HELD_BYTES_PER_CHANNEL = 256 * 2 ** 20;
export const MAX_HELD_BYTES_PER_TENANT = 1024 * 2 ** 20;
/** Octets of one client, worker or other raylet that wait their turn to be read (src/raylet/fair-share.ts), before it is told to pause; then what cannot pause is cut off. */
export const UNREAD_PAUSE_BYTES = 64 * 2 ** 10;
export const MAX_UNREAD_BYTES = 64 * 2 ** 20;
/** Large objects of one channel of which some parts are still to come. */
export const MAX_UPLOADS_PER_CHANNEL = 1_024;
/** Calls of one channel that are not finished; then its reads pause (back-pressure), and beyond twice this RESOURCE_EXHAUSTED. */
export const MAX_CALLS_IN_FLIGHT = 200_000;
/** Nesting of a value; deeper ones would overflow a stack. */
export const MAX_VALUE_DEPTH = 512;
export const MAX_TASK_DEPTH = 64;
/** Tasks and calls that one task or actor call has made and that have not ended; an option lowers it. */
export const MAX_FAN_OUT = 100_000;
/** Keys under which tasks of one job were submitted, and for how long each is known. */
export const MAX_IDEMPOTENCY_KEYS_PER_JOB = 10_000;
export const IDEMPOTENCY_TTL_MS = 10 * 60_000;
/** The longest time without activity that a driver may ask to be ended after; the shortest, in ticks of a raylet. */
export const MAX_IDLE_MS = 30 * 24 * 3_600_000;
/** Between two tries of one task, however often it failed. */
export const MAX_RETRY_DELAY_MS = 60_000;
/** Characters of a tenant's error message and stack that travel on. */
export const MAX_ERROR_MESSAGE_CHARS = 8_192;
export const MAX_STACK_CHARS = 16_384;
/** Log bytes kept of one task or actor; then one line says that the rest was dropped. */
export const MAX_LOG_BYTES = 1 * 2 ** 20;
/** One policy file, and the rules of one tenant after compilation. */
export const MAX_POLICY_BYTES = 1 * 2 ** 20;
export const MAX_RULES_PER_TENANT = 10_000;
/** Actors in one worker process, so that its death hurts a bounded number. */
export const MAX_ACTORS_PER_WORKER = 128;
/** Ended actors of one tenant that a node remembers, so that late callers are told why; the oldest are forgotten first. */
export const MAX_DEAD_ACTORS_PER_TENANT = 1_000;
/** Wait before an actor that keeps dying starts again: doubles from the second death in a row, up to this. */
export const MAX_RESTART_BACKOFF_MS = 10_000;
/** Isolates that one worker process serves before it is recycled. */
export const MAX_ISOLATES_PER_WORKER = 1_024;
/** One audit record as a leaf; tlog-tiles gives an entry's length 16 bits. */
export const MAX_AUDIT_RECORD_BYTES = 65_535;

export const SVID_TTL_MS = 60 * 60_000;
export const SESSION_TTL_MS = 5 * 60_000;
export const JOIN_TOKEN_TTL_MS = 10 * 60_000;
/** Clock difference between two nodes that verification tolerates. */
export const CLOCK_SKEW_MS = 30_000;
export const HEARTBEAT_MS = 250;
/** A node that has not reported for this long is dead to the others. */
export const NODE_DEAD_AFTER_MS = 5_000;
/**
 * So long a node may use its shares of quotas without a word from the head; so long nobody else is given the shares of one that is silent. As long as a session
 * lives without the head: by then no driver could ask the node for anything anyway.
 */
export const QUOTA_LEASE_MS = SESSION_TTL_MS;
/** Quotas of one tenant, its projects and its jobs that a node reports on: a report must fit a message. */
export const MAX_QUOTA_LINES_PER_TENANT = 16_384;

/** Calls open at once on one connection; a driver needs a handful, the gateway some tens. */
export const MAX_STREAMS_PER_CONNECTION = 256;
/** Connections of one SPIFFE ID to one server: several drivers of one user; beyond it is a leak or an attack. */
export const MAX_CONNECTIONS_PER_PEER = 64;
export const MAX_CONNECTIONS_PER_SERVER = 4_096;
/** A peer that has not finished TLS by then is dropped, so that silent sockets cannot pile up. */
export const TLS_HANDSHAKE_TIMEOUT_MS = 5_000;
/** Headers of one call: the session credential (a JWT of about 1 KiB) and room for more. */
export const MAX_METADATA_BYTES = 16 * 2 ** 10;
/** The single request message of a call must be whole by then. */
export const REQUEST_READ_TIMEOUT_MS = 30_000;
/** HTTP/2 receive window of a connection and of its streams: bounds what an unread peer can make us hold, and fills a fast link. */
export const FLOW_CONTROL_WINDOW_BYTES = 8 * 2 ** 20;
/** Bytes waiting on one stream before `write` asks to stop, and where it refuses. */
export const STREAM_HIGH_WATER_BYTES = 2 * 2 ** 20;
export const MAX_STREAM_BUFFER_BYTES = 64 * 2 ** 20;
/** Characters of an error text in a trailer: a header of bounded size. */
export const MAX_STATUS_TEXT_CHARS = 2_048;

/** Tables of the head: each row is memory of the head and, for tenants and nodes, of every raylet. */
export const MAX_TENANTS = 10_000;
export const MAX_NODES = 1_000;
/** What a node may say that it has, where neither its join token nor the head's configuration says less: above any machine of today, so that a typing error or a lie stands out. */
export const MAX_NODE_CPUS = 2_048;
export const MAX_NODE_MEMORY_BYTES = 64 * 2 ** 40;
/** Of each custom resource. */
export const MAX_NODE_CUSTOM = 10_000;
export const MAX_IDENTITIES_PER_TENANT = 10_000;
export const MAX_ROLES_PER_IDENTITY = 32;
export const MAX_OPEN_JOBS_PER_TENANT = 1_000;
/** Ended jobs of one tenant that stay listed; the oldest leave first. */
export const MAX_ENDED_JOBS_PER_TENANT = 1_000;
/** Drivers of one job. */
export const MAX_SESSIONS_PER_JOB = 64;
/** Nodes in what a raylet says of who wants a job there: the last ones. A count is one octet. */
export const MAX_ROOT_NODES = 255;
/** Bearer tokens of HTTP clients: a working day; a week at most, since whoever reads one has it. */
export const DEFAULT_TOKEN_TTL_MS = 8 * 3_600_000;
export const MAX_TOKEN_TTL_MS = 7 * 24 * 3_600_000;
export const MAX_TOKENS_PER_PRINCIPAL = 32;
export const MAX_TOKENS_PER_TENANT = 2_000;
export const MAX_JOB_TEXT_CHARS = 1_024;
export const MAX_SUBMISSION_ID_CHARS = 128;
/** A submitted job's command line, metadata and environment, without the values of variables: kept with the job. */
export const MAX_SUBMISSION_CHARS = 16_384;
/** Of all jobs of a tenant: one answer holds them. What is over takes those of the jobs that ended first. */
export const MAX_SUBMISSION_CHARS_PER_TENANT = 1 << 20;
/** A success may be taken back this long by the session that reported it: a process can only fail after it has closed its connection. */
export const SECOND_THOUGHTS_MS = 5_000;
/** Between the end of a driver's stream and its word on how it went; longer than a driver tries to say it. */
export const LAST_WORD_TTL_MS = 10_000;
/** Ended driver streams in one report of a node; the rest is in the next. */
export const MAX_ENDED_SESSIONS_PER_REPORT = 200;
/** Ended driver streams that a raylet remembers while the head is away; beyond it the credentials' own end decides. */
export const MAX_ENDED_SESSIONS_KEPT = 10_000;
export const MAX_ACTOR_NAMES_PER_TENANT = 10_000;
export const MAX_ACTOR_NAME_CHARS = 200;
/** Code and arguments of a detached actor that the head keeps in memory and store, so that it can start again when its node is lost; of one, and of a tenant's. */
export const MAX_ACTOR_SEED_BYTES = 1 * 2 ** 20;
export const MAX_ACTOR_SEED_BYTES_PER_TENANT = 16 * 2 ** 20;
export const MAX_CLASS_INFO_CHARS = 65_536;
/** Large policy files of one tenant that wait to be checked, and how long one check may take: the head checks one at a time. */
export const MAX_POLICY_CHECKS_PER_TENANT = 4;
export const POLICY_CHECK_TIMEOUT_MS = 20_000;
export const MAX_POLICY_FILES_PER_TENANT = 32;
/** Superseded policy versions of one tenant that can still be rolled back to. */
export const MAX_POLICY_HISTORY_PER_TENANT = 100;
export const MAX_REVOCATIONS = 100_000;
export const MAX_JOIN_TOKENS = 1_000;
/** Records that one `audit tail` shows before it follows. */
export const MAX_AUDIT_TAIL_RECORDS = 10_000;
/** A raylet that was away for this long still learns which jobs were stopped meanwhile. */
export const STOPPED_JOBS_TOLD_FOR_MS = 24 * 3_600_000;
/** One group commit of an audit log: bounds its memory and the work of one turn; records beyond it wait in their callers. */
export const MAX_AUDIT_COMMIT_BYTES = 4 * 2 ** 20;
/** Callers that wait at once for one audit log. */
export const MAX_AUDIT_WAITERS = 100_000;
/** One tenant's audit log on one node; then its calls are refused there, so that nobody fills the disk that all logs share. Some 100 million decisions. */
export const MAX_AUDIT_BYTES_PER_TENANT = 8 * 2 ** 30;
/** Beyond that: for facts that can no longer be refused and for the operator's calls; the first half also for the tenant's auditors, who must still export. */
export const AUDIT_HEADROOM_BYTES = 128 * 2 ** 20;
/** Of the disk under the audit logs: never a tenant's, so that the cluster's own log can be written; the smaller of the two. */
export const AUDIT_DISK_RESERVE_BYTES = 1 * 2 ** 30;
export const AUDIT_DISK_RESERVE_SHARE = 0.05;
/** Facts owed to a full audit log that a raylet keeps in memory, and beyond which what others do with the tenant's resources is refused too. */
export const MAX_OWED_RECORDS_PER_TENANT = 100_000;
/** Denied tries of one tenant at another's resources that its owner is told one by one, in each second; the rest is a number. */
export const MAX_INTRUSIONS_TOLD = 16;

/** Requirements of a runtime environment, characters of one and of all: they travel in a call's options. */
export const MAX_REQUIREMENTS = 64;
export const MAX_REQUIREMENT_CHARS = 256;
export const MAX_REQUIREMENTS_CHARS = 8_192;
/** What one build of packages may ask of the index: pages, files, octets of a page, of all files. Beyond it something resolves without end, or wants the disk full. */
export const MAX_BUILD_PAGES = 400;
export const MAX_BUILD_FILES = 400;
export const MAX_INDEX_PAGE_BYTES = 32 * 2 ** 20;
export const MAX_WHEEL_BYTES = 512 * 2 ** 20;
/** Of what is installed: octets and files. Both lie in the throw-away sandbox's memory first, so a bomb meets its control group even before. */
export const MAX_ENVIRONMENT_BYTES = 1 * 2 ** 30;
export const MAX_ENVIRONMENT_FILES = 50_000;
/** All environments of one tenant on a node; the longest unused are removed first. */
export const MAX_ENVIRONMENTS_BYTES_PER_TENANT = 4 * 2 ** 30;
/** From the start of the throw-away sandbox to the last file; and for an answer of the index to begin, or to go on. */
export const BUILD_TIMEOUT_MS = 600_000;
export const INDEX_STALL_MS = 30_000;
/** Builds of a node at once, tenants in turn; of one tenant one. */
export const MAX_BUILDS = 2;
