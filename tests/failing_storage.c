/* Storage that fails, for a process that is started with this library as LD_PRELOAD: calls of libc on files below some
   folders end with EIO, ESTALE or ETIMEDOUT, and one of them hangs. Which calls do follows from their number and a seed.
   Calls of one host are counted in a file, from one start of it to the next. Variables of the environment:

   STORAGE_FOLDERS  folders, joined by colons; their files are the storage
   STORAGE_COUNTS   a file of 64 zero bytes: calls, failed ones, those on checkpoints, failed ones of these, hangs
   STORAGE_SEED     a number
   STORAGE_SHARE    of calls that fail. On checkpoints they come in a row, for BLIP_S: a save is hundreds of calls, of
                    which none may fail
   STORAGE_HANG     the number of the call that hangs; 0: none
   STORAGE_HANG_S   for so long, as do all calls in the same process after it
*/
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define BLIP_S 0.2
#define FILES 65536
enum { NO, PLAIN, CHECKPOINT };

static char folders[8192];
static _Atomic uint64_t *counts; /* NULL: nothing fails */
static uint64_t seed, hang_at;
static double share, hang_s;
static _Atomic unsigned char kinds[FILES]; /* of open files */
static _Atomic double blip_end, hang_end;

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec + 1e-9 * time.tv_nsec;
}

static double variable(const char *name) {
  const char *value = getenv(name);
  return value ? atof(value) : 0;
}

__attribute__((constructor)) static void begin(void) {
  const char *under = getenv("STORAGE_FOLDERS"), *file = getenv("STORAGE_COUNTS");
  if (!under || !file || strlen(under) >= sizeof folders) return;
  int handle = open(file, O_RDWR);
  if (handle < 0) return;
  void *map = mmap(NULL, 64, PROT_READ | PROT_WRITE, MAP_SHARED, handle, 0);
  close(handle);
  if (map == MAP_FAILED) return;
  strcpy(folders, under);
  seed = variable("STORAGE_SEED"), share = variable("STORAGE_SHARE");
  hang_at = variable("STORAGE_HANG"), hang_s = variable("STORAGE_HANG_S");
  counts = map;
}

static int kind_of(const char *path) {
  if (!counts || !path) return NO;
  for (const char *folder = folders; *folder;) {
    size_t length = strcspn(folder, ":");
    if (!strncmp(path, folder, length) && (path[length] == '/' || !path[length]))
      return strstr(path + length, "/checkpoints") ? CHECKPOINT : PLAIN;
    folder += length + (folder[length] == ':');
  }
  return NO;
}

static int kind_at(int folder, const char *path) {
  if (path && *path != '/' && folder >= 0 && folder < FILES) return kinds[folder];
  return kind_of(path);
}

static int kind_open(int file) { return counts && file >= 0 && file < FILES ? kinds[file] : NO; }

static double drawn(uint64_t number) { /* splitmix64: 0 to 1 */
  uint64_t x = seed * 0x9e3779b97f4a7c15u + number * 0xd1342543de82ef95u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return ((x ^ (x >> 31)) >> 11) * 0x1p-53;
}

/* Whether a call fails; sets errno */
static int fails(int kind) {
  static const int errors[] = {EIO, EIO, ESTALE, ETIMEDOUT};
  if (kind == NO) return 0;
  uint64_t number = atomic_fetch_add(&counts[0], 1) + 1;
  double draw = drawn(number), left;
  if (kind == CHECKPOINT) atomic_fetch_add(&counts[2], 1);
  if (hang_at && number >= hang_at && !atomic_exchange(&counts[4], 1)) hang_end = now() + hang_s;
  while ((left = hang_end - now()) > 0) usleep(left < 0.1 ? 1e6 * left + 1 : 100000);
  if (kind == PLAIN && draw >= share) return 0;
  if (kind == CHECKPOINT && now() >= blip_end) {
    /* one may begin while fewer than the share have failed; rarely, as each fails a save, and with it a start of the job */
    if (counts[3] > share * counts[2] || draw >= share / 200) return 0;
    blip_end = now() + BLIP_S;
  }
  atomic_fetch_add(&counts[1], 1);
  if (kind == CHECKPOINT) atomic_fetch_add(&counts[3], 1);
  errno = errors[number % 4];
  return 1;
}

static int opened(int file, int kind) {
  if (counts && file >= 0 && file < FILES) kinds[file] = kind;
  return file;
}

#define REAL(name) \
  static __typeof__(&name) real; \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define WRAP(type, name, parameters, kind, failed, ...) \
  type name parameters { \
    REAL(name); \
    return fails(kind) ? failed : real(__VA_ARGS__); \
  }

#define OPEN(name, parameters, kind_, ...) \
  int name parameters { \
    REAL(name); \
    mode_t mode = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { \
      va_list more; \
      va_start(more, flags); \
      mode = va_arg(more, mode_t); \
      va_end(more); \
    } \
    int kind = kind_; \
    return fails(kind) ? -1 : opened(real(__VA_ARGS__, flags, mode), kind); \
  }

OPEN(open, (const char *path, int flags, ...), kind_of(path), path)
OPEN(open64, (const char *path, int flags, ...), kind_of(path), path)
OPEN(openat, (int folder, const char *path, int flags, ...), kind_at(folder, path), folder, path)
OPEN(openat64, (int folder, const char *path, int flags, ...), kind_at(folder, path), folder, path)

int close(int file) { /* of a file that was written it may fail, too; but nobody may call it twice */
  REAL(close);
  if (counts && file >= 0 && file < FILES) kinds[file] = NO;
  return real(file);
}

DIR *opendir(const char *path) {
  REAL(opendir);
  int kind = kind_of(path);
  DIR *folder = fails(kind) ? NULL : real(path);
  if (folder) opened(dirfd(folder), kind);
  return folder;
}

int closedir(DIR *folder) {
  REAL(closedir);
  opened(dirfd(folder), NO);
  return real(folder);
}

WRAP(struct dirent *, readdir, (DIR *folder), kind_open(dirfd(folder)), NULL, folder)
WRAP(struct dirent64 *, readdir64, (DIR *folder), kind_open(dirfd(folder)), NULL, folder)
WRAP(ssize_t, read, (int file, void *data, size_t size), kind_open(file), -1, file, data, size)
WRAP(ssize_t, pread, (int file, void *data, size_t size, off_t at), kind_open(file), -1, file, data, size, at)
WRAP(ssize_t, pread64, (int file, void *data, size_t size, off64_t at), kind_open(file), -1, file, data, size, at)
WRAP(ssize_t, readv, (int file, const struct iovec *parts, int count), kind_open(file), -1, file, parts, count)
WRAP(ssize_t, write, (int file, const void *data, size_t size), kind_open(file), -1, file, data, size)
WRAP(ssize_t, pwrite, (int file, const void *data, size_t size, off_t at), kind_open(file), -1, file, data, size, at)
WRAP(ssize_t, pwrite64, (int file, const void *data, size_t size, off64_t at), kind_open(file), -1, file, data, size, at)
WRAP(ssize_t, writev, (int file, const struct iovec *parts, int count), kind_open(file), -1, file, parts, count)
WRAP(int, fsync, (int file), kind_open(file), -1, file)
WRAP(int, fdatasync, (int file), kind_open(file), -1, file)
WRAP(int, ftruncate, (int file, off_t size), kind_open(file), -1, file, size)
WRAP(int, ftruncate64, (int file, off64_t size), kind_open(file), -1, file, size)
WRAP(int, rename, (const char *from, const char *to), kind_of(to), -1, from, to)
WRAP(int, mkdir, (const char *path, mode_t mode), kind_of(path), -1, path, mode)
WRAP(int, rmdir, (const char *path), kind_of(path), -1, path)
WRAP(int, unlink, (const char *path), kind_of(path), -1, path)
WRAP(int, unlinkat, (int folder, const char *path, int flags), kind_at(folder, path), -1, folder, path, flags)
WRAP(int, stat, (const char *path, struct stat *to), kind_of(path), -1, path, to)
WRAP(int, stat64, (const char *path, struct stat64 *to), kind_of(path), -1, path, to)
WRAP(int, lstat, (const char *path, struct stat *to), kind_of(path), -1, path, to)
WRAP(int, lstat64, (const char *path, struct stat64 *to), kind_of(path), -1, path, to)
WRAP(int, fstat, (int file, struct stat *to), kind_open(file), -1, file, to)
WRAP(int, fstat64, (int file, struct stat64 *to), kind_open(file), -1, file, to)
WRAP(int, fstatat, (int folder, const char *path, struct stat *to, int flags), kind_at(folder, path), -1, folder, path, to,
     flags)
WRAP(int, fstatat64, (int folder, const char *path, struct stat64 *to, int flags), kind_at(folder, path), -1, folder, path,
     to, flags)

/* Names of the same in a libc before 2.33 */
int __xstat(int version, const char *path, struct stat *to);
int __lxstat(int version, const char *path, struct stat *to);
int __fxstat(int version, int file, struct stat *to);
WRAP(int, __xstat, (int version, const char *path, struct stat *to), kind_of(path), -1, version, path, to)
WRAP(int, __lxstat, (int version, const char *path, struct stat *to), kind_of(path), -1, version, path, to)
WRAP(int, __fxstat, (int version, int file, struct stat *to), kind_open(file), -1, version, file, to)
