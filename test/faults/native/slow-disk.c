/* Loaded into a process of a cluster by LD_PRELOAD: its fdatasync takes as long as the file named by SLOW_DISK says, in milliseconds. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int fdatasync(int fd) {
  static int (*real)(int);
  const char *path = getenv("SLOW_DISK");
  FILE *file = path == NULL ? NULL : fopen(path, "r");
  unsigned ms = 0;
  if (file != NULL) {
    if (fscanf(file, "%u", &ms) != 1) ms = 0;
    fclose(file);
  }
  if (ms > 0) usleep(ms * 1000);
  if (real == NULL) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
  return real(fd);
}
