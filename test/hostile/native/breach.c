/*
 * Stands in for node inside a worker's jail: native code that is wholly the attacker's. It waits for one envelope whose batch names
 * an attack, tries it, and answers `name=outcome` lines as a batch of slot 1 on descriptor 3. Outcome: an errno, or OK.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static char report[60000];
static size_t length;

static void say(const char *name, long result) {
  if (result >= 0) length += snprintf(report + length, sizeof report - length, "%s=OK\n", name);
  else length += snprintf(report + length, sizeof report - length, "%s=%s\n", name, strerrorname_np(errno));
}

static void number(const char *name, long value) { length += snprintf(report + length, sizeof report - length, "%s=%ld\n", name, value); }

static void answer(void) {
  unsigned header[2] = {(unsigned)length + 4, 1};
  write(3, header, 8);
  for (size_t at = 0; at < length;) {
    ssize_t n = write(3, report + at, length - at);
    if (n <= 0) break;
    at += n;
  }
  length = 0;
}

#define TRY(name, call) do { errno = 0; say(name, (long)(call)); } while (0)

static void system_calls(void) {
  struct { unsigned long a[8]; } zero = {0};
  TRY("socket-inet", syscall(SYS_socket, 2, 1, 0));
  TRY("socket-unix", syscall(SYS_socket, 1, 1, 0));
  TRY("socket-netlink", syscall(SYS_socket, 16, 3, 0));
  TRY("socket-vsock", syscall(SYS_socket, 40, 1, 0));
  TRY("socketpair", syscall(SYS_socketpair, 1, 1, 0, &zero));
  TRY("connect", syscall(SYS_connect, 3, &zero, 16));
  TRY("sendmsg", syscall(SYS_sendmsg, 3, &zero, 0));
  TRY("recvmsg", syscall(SYS_recvmsg, 3, &zero, 0));
  TRY("ptrace", syscall(SYS_ptrace, 0, 0, 0, 0));
  TRY("process_vm_readv", syscall(SYS_process_vm_readv, 1, &zero, 1, &zero, 1, 0));
  TRY("io_uring_setup", syscall(SYS_io_uring_setup, 8, &zero));
  TRY("bpf", syscall(SYS_bpf, 0, &zero, 48));
  TRY("userfaultfd", syscall(SYS_userfaultfd, 0));
  TRY("perf_event_open", syscall(SYS_perf_event_open, &zero, 0, -1, -1, 0));
  TRY("keyctl", syscall(SYS_keyctl, 0, -3, 0));
  TRY("add_key", syscall(SYS_add_key, "user", "x", "y", 1, -3));
  TRY("mount", syscall(SYS_mount, "none", "/staging", "tmpfs", 0, 0));
  TRY("umount", syscall(SYS_umount2, "/staging", 2));
  TRY("fsopen", syscall(SYS_fsopen, "tmpfs", 0));
  TRY("open_tree", syscall(SYS_open_tree, -100, "/", 1));
  TRY("pivot_root", syscall(SYS_pivot_root, "/", "/"));
  TRY("chroot", syscall(SYS_chroot, "/staging"));
  TRY("unshare-user", syscall(SYS_unshare, CLONE_NEWUSER));
  TRY("unshare-files", syscall(SYS_unshare, CLONE_FILES));
  TRY("setns", syscall(SYS_setns, 0, 0));
  TRY("open_by_handle_at", syscall(SYS_open_by_handle_at, 3, &zero, 0));
  TRY("name_to_handle_at", syscall(SYS_name_to_handle_at, -100, "/", &zero, &zero, 0));
  TRY("init_module", syscall(SYS_init_module, &zero, 8, ""));
  TRY("kexec_load", syscall(SYS_kexec_load, 0, 0, 0, 0));
  TRY("reboot", syscall(SYS_reboot, 0, 0, 0, 0));
  TRY("personality", syscall(SYS_personality, 0x0040000));
  TRY("setuid", syscall(SYS_setuid, 0));
  TRY("setgroups", syscall(SYS_setgroups, 0, &zero));
  TRY("capset", syscall(SYS_capset, &zero, &zero));
  TRY("memfd_create", syscall(SYS_memfd_create, "x", 0));
  TRY("kill-init", syscall(SYS_kill, 1, 9));
  TRY("kill-all", syscall(SYS_kill, -1, 9));
  TRY("pidfd_open", syscall(SYS_pidfd_open, 1, 0));
  TRY("raise-limit", syscall(SYS_prlimit64, 0, 7, &zero, 0));
  TRY("fork", syscall(SYS_clone, 17, 0, 0, 0, 0));
  TRY("clone-newuser", syscall(SYS_clone, CLONE_NEWUSER | 17, 0, 0, 0, 0));
  TRY("clone-thread-newns", syscall(SYS_clone, CLONE_VM | CLONE_SIGHAND | CLONE_THREAD | CLONE_NEWNS, 0, 0, 0, 0));
  TRY("clone3", syscall(SYS_clone3, &zero, sizeof zero));
  TRY("tiocsti", syscall(SYS_ioctl, 0, 0x5412, "x"));
  TRY("prctl-dumpable", prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
  TRY("prctl-keepcaps", prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0));
  TRY("prctl-subreaper", prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
  TRY("sysctl-uname", syscall(SYS_sethostname, "x", 1));
  TRY("shmget", syscall(SYS_shmget, 1, 4096, 01666));
  TRY("mq_open", syscall(SYS_mq_open, "x", O_CREAT | O_RDWR, 0666, 0));
  TRY("quotactl", syscall(SYS_quotactl, 0, "", 0, 0));
  TRY("syslog", syscall(SYS_syslog, 3, &zero, 8));
}

static void files(void) {
  TRY("read-passwd", open("/etc/passwd", O_RDONLY));
  TRY("read-shadow", open("/etc/shadow", O_RDONLY));
  TRY("read-environ", open("/proc/1/environ", O_RDONLY));
  TRY("read-self", open("/proc/self/maps", O_RDONLY));
  TRY("read-sys", open("/sys/kernel/notes", O_RDONLY));
  TRY("read-root", open("/root", O_RDONLY));
  TRY("read-home", open("/home", O_RDONLY));
  TRY("read-tmp", open("/tmp", O_RDONLY));
  TRY("read-shell", open("/bin/sh", O_RDONLY));
  TRY("read-docker", open("/run", O_RDONLY));
  TRY("device-mem", open("/dev/mem", O_RDONLY));
  TRY("device-kmsg", open("/dev/kmsg", O_RDONLY));
  TRY("device-tty", open("/dev/tty", O_RDWR));
  TRY("device-shm", open("/dev/shm", O_RDONLY));
  TRY("up-and-out", open("/staging/../../../../etc/passwd", O_RDONLY));
  TRY("write-root", open("/x", O_CREAT | O_RDWR, 0600));
  TRY("write-app", open("/app/x", O_CREAT | O_RDWR, 0600));
  TRY("write-host", open("/app/worker-host.cjs", O_RDWR));
  TRY("write-node", open("/app/node", O_RDWR));
  TRY("write-libc", open("/lib/x86_64-linux-gnu/libc.so.6", O_RDWR));
  TRY("write-objects", open("/objects/x", O_CREAT | O_RDWR, 0600));
  TRY("write-object", open("/objects/sealed", O_RDWR));
  TRY("write-code", open("/code/x", O_CREAT | O_RDWR, 0600));
  TRY("write-dev", open("/dev/x", O_CREAT | O_RDWR, 0600));
  TRY("symlink", symlink("/etc/passwd", "/staging/1-1"));
  TRY("hard-link", link("/app/node", "/staging/1-2"));
  TRY("rename", rename("/objects/sealed", "/staging/1-3"));
  TRY("unlink", unlink("/objects/sealed"));
  TRY("mknod", mknod("/staging/1-4", S_IFCHR | 0666, 0x103));
  TRY("mkfifo", mkfifo("/staging/1-5", 0666));
  TRY("mkdir", mkdir("/staging/d", 0777));
  TRY("chmod", chmod("/staging", 04777));
  TRY("exec-shell", execl("/bin/sh", "sh", (char *)0));
  TRY("exec-bwrap", execl("/usr/bin/bwrap", "bwrap", (char *)0));
  TRY("staging", open("/staging/1-0", O_CREAT | O_RDWR, 0600));
  TRY("null", open("/dev/null", O_RDWR));
}

static void *sleeper(void *unused) { (void)unused; for (;;) pause(); }

int main(void) {
  char mode[256];
  unsigned header[2];
  if (read(3, header, 8) != 8) return 1;
  size_t want = header[0] - 4;
  if (want >= sizeof mode || read(3, mode, want) != (ssize_t)want) return 1;
  mode[want] = 0;
  if (!strcmp(mode, "system-calls")) system_calls();
  else if (!strcmp(mode, "files")) files();
  else if (!strcmp(mode, "descriptors")) {
    for (int fd = 0; fd < 1024; fd++) if (fcntl(fd, F_GETFD) >= 0) number("fd", fd);
    number("uid", getuid());
    number("pid", getpid());
    extern char **environ;
    for (char **e = environ; *e; e++) length += snprintf(report + length, sizeof report - length, "env=%s\n", *e);
  } else if (!strcmp(mode, "threads")) {
    int n = 0;
    pthread_attr_t attr;
    pthread_t thread;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 65536);
    while (n < 5000 && pthread_create(&thread, &attr, sleeper, 0) == 0) n++;
    number("threads", n);
  } else if (!strcmp(mode, "memory")) {
    for (;;) {
      char *block = mmap(0, 1 << 24, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (block == MAP_FAILED) continue;
      memset(block, 1, 1 << 24);
    }
  } else if (!strcmp(mode, "staging")) {
    static char block[1 << 20];
    for (int n = 0;; n++) {
      char name[64];
      snprintf(name, sizeof name, "/staging/1-%d", n);
      int fd = open(name, O_CREAT | O_WRONLY, 0600);
      for (int i = 0; i < 64; i++) if (write(fd, block, sizeof block) < 0) break;
      close(fd);
    }
  } else if (!strcmp(mode, "x32")) syscall(0x40000000 | SYS_getpid);
#ifdef __x86_64__
  else if (!strcmp(mode, "int80")) { long r; __asm__ volatile("int $0x80" : "=a"(r) : "a"(20)); number("int80", r); }
#endif
  else if (!strncmp(mode, "run-time:", 9)) {
    /* Loads the filter that the worker host loads, then makes the named call. */
    static struct sock_filter code[4096];
    int fd = open("/app/run-time.bpf", O_RDONLY);
    ssize_t bytes = read(fd, code, sizeof code);
    struct sock_fprog program = {.len = bytes / sizeof *code, .filter = code};
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) != 0) { say("load", -1); answer(); return 0; }
    const char *call = mode + 9;
    if (!strcmp(call, "socket")) syscall(SYS_socket, 2, 1, 0);
    else if (!strcmp(call, "execve")) execl("/app/node", "node", (char *)0);
    else if (!strcmp(call, "fork")) syscall(SYS_clone, 17, 0, 0, 0, 0);
    else if (!strcmp(call, "ptrace")) syscall(SYS_ptrace, 0, 0, 0, 0);
    else if (!strcmp(call, "unshare")) syscall(SYS_unshare, CLONE_NEWUSER);
    else if (!strcmp(call, "seccomp")) syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
    else if (!strcmp(call, "getpid")) { number("pid", getpid()); TRY("unlisted", syscall(SYS_mkdir, "/staging/d", 0777)); }
  } else if (!strcmp(mode, "bad-length")) { unsigned bad[2] = {2, 1}; write(3, bad, 8); pause(); }
  else if (!strcmp(mode, "huge-length")) { unsigned bad[2] = {0x7fffffff, 1}; write(3, bad, 8); pause(); }
  else if (!strcmp(mode, "bad-op")) { unsigned char bad[] = {9, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0xee}; write(3, bad, sizeof bad); pause(); }
  else if (!strcmp(mode, "bad-frame")) { unsigned char bad[] = {9, 0, 0, 0, 0, 0, 0, 0, 200, 0, 0, 0, 0x91}; write(3, bad, sizeof bad); pause(); }
  else if (!strcmp(mode, "bad-text")) { unsigned char bad[] = {22, 0, 0, 0, 0, 0, 0, 0, 14, 0, 0, 0, 0x91, 1, 0, 0, 0, 2, 0, 0xff, 0xff, 0, 0, 0, 0, 0}; write(3, bad, sizeof bad); pause(); }
  else if (!strcmp(mode, "close-channel")) { close(3); pause(); }
  else if (!strcmp(mode, "deaf")) pause();
  else if (!strcmp(mode, "chatter")) { static char text[1 << 16]; memset(text, 'x', sizeof text); for (int i = 0; i < 64; i++) write(1, text, sizeof text); number("printed", 1); }
  answer();
  for (;;) pause();
}
