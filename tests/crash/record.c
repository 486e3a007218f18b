/* Records every call below a directory that changes the disk, in the order of all threads, with its
   data. `record_begin` says where. Preloaded into the real program (LD_PRELOAD); it changes nothing that it sees.

   A record is a line  OP <tab> inode <tab> offset <tab> length <tab> site <tab> path <tab> path  and
   `length` bytes of data. One lock is held around the call and its record, so that the order in the
   log is the order on the disk. `record_site` names the caller of this thread's next fsync. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;
#define LOCK pthread_mutex_lock(&order)
#define UNLOCK pthread_mutex_unlock(&order)
static int log_fd = -1;
static const char *below = "";
static size_t below_length;
static __thread char site[256];

/* Begin to record what happens below `prefix`; the process has one thread by then. */
void record_begin(const char *to, const char *prefix)
{
    below = strdup(prefix);
    below_length = strlen(prefix);
    log_fd = (int)syscall(SYS_openat, AT_FDCWD, to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

void record_site(const char *name) { snprintf(site, sizeof site, "%s", name); }

static int is_below(const char *path)
{
    return log_fd >= 0 && !strncmp(path, below, below_length)
        && (path[below_length] == '/' || !path[below_length]);
}

/* Where a descriptor points to; 0 when that is not below. */
static int path_of(int fd, char *into, size_t size)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, into, size - 1);
    if (length <= 0)
        return 0;
    into[length] = 0;
    return is_below(into);
}

/* Make `path` absolute; 0 when it is not below. Names are taken as they are, without `..`. */
static int resolve(int at, const char *path, char *into, size_t size)
{
    char start[4096];
    if (log_fd < 0 || !path)
        return 0;
    if (path[0] == '/') {
        snprintf(into, size, "%s", path);
        return is_below(into);
    }
    if (at == AT_FDCWD) {
        if (!getcwd(start, sizeof start))
            return 0;
    } else if (!path_of(at, start, sizeof start))
        return 0;
    snprintf(into, size, "%s/%s", start, path);
    return is_below(into);
}

static void put(const void *data, size_t size)
{
    const char *at = data;
    while (size) {
        long wrote = syscall(SYS_write, log_fd, at, size);
        if (wrote <= 0)
            _exit(99); /* a record that is not whole proves nothing */
        at += wrote;
        size -= (size_t)wrote;
    }
}

static void record(const char *op, ino_t inode, long long offset, const void *data, size_t size,
                   const char *path, const char *other)
{
    char line[9000];
    int before = errno;
    int length = snprintf(line, sizeof line, "%s\t%llu\t%lld\t%zu\t%s\t%s\t%s\n", op,
                          (unsigned long long)inode, offset, size, site, path, other);
    put(line, (size_t)length);
    if (size)
        put(data, size);
    errno = before;
}

/* The program takes this fax for stored from now on. */
void record_stored(const char *fax)
{
    LOCK;
    record("stored", 0, 0, 0, 0, fax, "");
    UNLOCK;
}

static ino_t inode_of(int fd)
{
    struct stat found;
    return fstat(fd, &found) ? 0 : found.st_ino;
}

#define REAL(name, ...) static int (*real)(__VA_ARGS__); if (!real) real = (int (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static int opened(int (*real)(int, const char *, int, ...), int at, const char *path, int flags, mode_t mode)
{
    char whole[8192];
    struct stat found;
    if (!(flags & (O_CREAT | O_TRUNC)) || !resolve(at, path, whole, sizeof whole))
        return real(at, path, flags, mode);
    LOCK;
    int missing = fstatat(at, path, &found, AT_SYMLINK_NOFOLLOW) && errno == ENOENT;
    int fd = real(at, path, flags, mode);
    if (fd >= 0 && missing && !fstat(fd, &found))
        record("create", found.st_ino, found.st_mode & 07777, 0, 0, whole, "");
    else if (fd >= 0 && (flags & O_TRUNC))
        record("truncate", inode_of(fd), 0, 0, 0, whole, "");
    UNLOCK;
    return fd;
}

#define MODE mode_t mode = 0; if (flags & O_CREAT) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }
#define REAL_OPENAT static int (*real)(int, const char *, int, ...); if (!real) real = (int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, "openat64")
int open(const char *path, int flags, ...) { MODE REAL_OPENAT; return opened(real, AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE REAL_OPENAT; return opened(real, AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE REAL_OPENAT; return opened(real, at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE REAL_OPENAT; return opened(real, at, path, flags, mode); }

static ssize_t written(int fd, const void *data, size_t size, off64_t offset, int positioned)
{
    static ssize_t (*real_write)(int, const void *, size_t);
    static ssize_t (*real_pwrite)(int, const void *, size_t, off64_t);
    char path[4200];
    if (!real_write) {
        real_write = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
        real_pwrite = (ssize_t (*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
    }
    if (log_fd < 0 || !path_of(fd, path, sizeof path))
        return positioned ? real_pwrite(fd, data, size, offset) : real_write(fd, data, size);
    LOCK;
    if (!positioned)
        offset = lseek64(fd, 0, fcntl(fd, F_GETFL) & O_APPEND ? SEEK_END : SEEK_CUR);
    ssize_t wrote = positioned ? real_pwrite(fd, data, size, offset) : real_write(fd, data, size);
    if (wrote > 0)
        record("write", inode_of(fd), offset, data, (size_t)wrote, path, "");
    UNLOCK;
    return wrote;
}
ssize_t write(int fd, const void *data, size_t size) { return written(fd, data, size, 0, 0); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return written(fd, data, size, offset, 1); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) { return written(fd, data, size, offset, 1); }

#define ON_DESCRIPTOR(op, number, call)                      \
    char path[4200];                                         \
    if (log_fd < 0 || !path_of(fd, path, sizeof path))       \
        return call;                                         \
    LOCK;                                                    \
    int result = call;                                       \
    if (!result)                                             \
        record(op, inode_of(fd), number, 0, 0, path, "");    \
    site[0] = 0;                                             \
    UNLOCK;                                                  \
    return result
int fsync(int fd) { REAL("fsync", int); ON_DESCRIPTOR("sync", 0, real(fd)); }
int fdatasync(int fd) { REAL("fdatasync", int); ON_DESCRIPTOR("sync", 0, real(fd)); }
int ftruncate(int fd, off_t size) { REAL("ftruncate64", int, off64_t); ON_DESCRIPTOR("truncate", size, real(fd, size)); }
int ftruncate64(int fd, off64_t size) { REAL("ftruncate64", int, off64_t); ON_DESCRIPTOR("truncate", size, real(fd, size)); }
int fchmod(int fd, mode_t mode) { REAL("fchmod", int, mode_t); ON_DESCRIPTOR("mode", mode, real(fd, mode)); }

int mkdirat(int at, const char *path, mode_t mode)
{
    REAL("mkdirat", int, const char *, mode_t);
    char whole[8192];
    struct stat found;
    if (!resolve(at, path, whole, sizeof whole))
        return real(at, path, mode);
    LOCK;
    int result = real(at, path, mode);
    if (!result && !fstatat(at, path, &found, AT_SYMLINK_NOFOLLOW))
        record("mkdir", found.st_ino, found.st_mode & 07777, 0, 0, whole, "");
    UNLOCK;
    return result;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int unlinkat(int at, const char *path, int flags)
{
    REAL("unlinkat", int, const char *, int);
    char whole[8192];
    if (!resolve(at, path, whole, sizeof whole))
        return real(at, path, flags);
    LOCK;
    int result = real(at, path, flags);
    if (!result)
        record("unlink", 0, 0, 0, 0, whole, "");
    UNLOCK;
    return result;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int linkat(int from, const char *path, int to, const char *other, int flags)
{
    REAL("linkat", int, const char *, int, const char *, int);
    char whole[8192] = "", target[8192];
    if (!resolve(to, other, target, sizeof target))
        return real(from, path, to, other, flags);
    LOCK;
    resolve(from, path, whole, sizeof whole);
    int result = real(from, path, to, other, flags);
    if (!result)
        record("link", 0, 0, 0, 0, whole, target);
    UNLOCK;
    return result;
}
int link(const char *path, const char *other) { return linkat(AT_FDCWD, path, AT_FDCWD, other, 0); }

int renameat2(int from, const char *path, int to, const char *other, unsigned flags)
{
    REAL("renameat2", int, const char *, int, const char *, unsigned);
    char whole[8192] = "", target[8192];
    if (!resolve(to, other, target, sizeof target))
        return real(from, path, to, other, flags);
    LOCK;
    resolve(from, path, whole, sizeof whole);
    int result = real(from, path, to, other, flags);
    if (!result)
        record("rename", 0, 0, 0, 0, whole, target);
    UNLOCK;
    return result;
}
int renameat(int from, const char *path, int to, const char *other) { return renameat2(from, path, to, other, 0); }
int rename(const char *path, const char *other) { return renameat(AT_FDCWD, path, AT_FDCWD, other); }
