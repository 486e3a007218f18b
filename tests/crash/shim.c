// Preloaded library that sees every call that changes the disk below SHIM_PREFIX, in all threads of
// the process, those of SQLite included. It counts them, and at the chosen one it kills the process
// or makes the call fail.
//
//   shim_arm(prefix, at, act)   act: "", kill, eio, enospc, emfile, short, lie, stick-…
//                               child: kill the processes that this one has started, and continue
//                               stick-ACT: from that call on
//   shim_strike_after(call, part, nth, more)
//                               choose the call by what it does: `more` after the `nth` of this name
//                               that has `part` in its path
//   shim_names(path)            write the name of each call to this file
//   shim_count()                how many calls there were since shim_arm
//
// It does nothing until it is armed, so that a process can be forked first.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char prefix[PATH_MAX];
static size_t prefix_length;
static int count, at, armed, sticks;
static char act[32];
static int names_fd = -1;
static char awaited[16], awaited_part[64];
static int awaited_nth, awaited_more;

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

void shim_arm(const char *below, int number, const char *what) {
    snprintf(prefix, sizeof prefix, "%s", below);
    prefix_length = strlen(prefix);
    count = 0;
    at = number;
    sticks = !strncmp(what, "stick-", 6);
    snprintf(act, sizeof act, "%s", sticks ? what + 6 : what);
    armed = 1;
}
void shim_strike_after(const char *call, const char *part, int nth, int more) {
    snprintf(awaited, sizeof awaited, "%s", call);
    snprintf(awaited_part, sizeof awaited_part, "%s", part);
    awaited_nth = nth;
    awaited_more = more;
}
int shim_count(void) { return count; }
void shim_names(const char *path) {
    names_fd = REAL(open)(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
}

static int inside(const char *path) {
    return armed && !strncmp(path, prefix, prefix_length) &&
           (path[prefix_length] == '/' || !path[prefix_length]);
}

// The absolute path of a name below an open directory; dot and symbolic links are not resolved.
static int resolve(int directory, const char *name, char *out) {
    if (!armed || !name) return 0;
    if (name[0] == '/') {
        snprintf(out, PATH_MAX, "%s", name);
        return inside(out);
    }
    ssize_t length;
    if (directory == AT_FDCWD) {
        if (!getcwd(out, PATH_MAX)) return 0;
        length = strlen(out);
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        length = readlink(link, out, PATH_MAX - 1);
        if (length < 0) return 0;
    }
    if (strcmp(name, ".")) snprintf(out + length, PATH_MAX - length, "/%s", name);
    else out[length] = 0;
    return inside(out);
}
static int path_of(int fd, char *out) {
    if (!armed) return 0;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, out, PATH_MAX - 1);
    if (length <= 0) return 0;
    out[length] = 0;
    return inside(out);
}

enum { GO, FAIL, SHORT, LIE };

static void kill_children(void) {
    DIR *all = opendir("/proc");
    struct dirent *one;
    while (all && (one = readdir(all))) {
        char path[64], line[512] = "", *rest;
        int parent = 0;
        snprintf(path, sizeof path, "/proc/%.20s/stat", one->d_name);
        FILE *stat = atoi(one->d_name) ? fopen(path, "re") : NULL;
        if (!stat) continue;
        if (fgets(line, sizeof line, stat) && (rest = strrchr(line, ')')) &&
            sscanf(rest, ") %*c %d", &parent) == 1 && parent == getpid())
            kill(atoi(one->d_name), SIGKILL);
        fclose(stat);
    }
    if (all) closedir(all);
}

static int is_error(const char *name, int number) {
    if (strcmp(act, name)) return 0;
    errno = number;
    return 1;
}
static int struck(const char *call, const char *path) {
    if (names_fd >= 0) dprintf(names_fd, "%d %s %s\n", count + 1, call, path);
    int number = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    if (awaited_nth && !strcmp(call, awaited) && strstr(path, awaited_part) &&
        !__atomic_sub_fetch(&awaited_nth, 1, __ATOMIC_SEQ_CST))
        at = number + awaited_more;
    if (!at || !(number == at || (sticks && number >= at))) return GO;
    if (!strcmp(act, "kill")) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    if (!strcmp(act, "child")) kill_children();
    if (is_error("eio", EIO) || is_error("enospc", ENOSPC) || is_error("emfile", EMFILE)) return FAIL;
    if (!strcmp(act, "short")) return SHORT;
    if (!strcmp(act, "lie") && strstr(call, "sync")) return LIE;
    return GO;
}

static int is_there(const char *path) {
    struct stat status;
    return !lstat(path, &status);
}
static int opened(const char *path, int flags, int (*call)(int, const char *, int, mode_t), int where,
                  const char *name, mode_t mode) {
    struct stat before;
    int was = !stat(path, &before);
    if (!(flags & O_TRUNC) && !((flags & O_CREAT) && !was)) return call(where, name, flags, mode);
    if (struck(was ? "open-truncate" : "create", path) == FAIL) return -1;
    return call(where, name, flags, mode);
}
static int real_open(int where, const char *name, int flags, mode_t mode) {
    (void)where;
    return REAL(open)(name, flags, mode);
}
static int real_openat(int where, const char *name, int flags, mode_t mode) {
    return REAL(openat)(where, name, flags, mode);
}
#define MODE                                       \
    mode_t mode = 0;                               \
    if (flags & (O_CREAT | O_TMPFILE)) {           \
        va_list rest;                              \
        va_start(rest, flags);                     \
        mode = va_arg(rest, mode_t);               \
        va_end(rest);                              \
    }
#define OPEN(name_of)                                                         \
    int name_of(const char *name, int flags, ...) {                           \
        MODE char path[PATH_MAX];                                             \
        if (!resolve(AT_FDCWD, name, path)) return real_open(0, name, flags, mode); \
        return opened(path, flags, real_open, 0, name, mode);                 \
    }
#define OPENAT(name_of)                                                       \
    int name_of(int where, const char *name, int flags, ...) {                \
        MODE char path[PATH_MAX];                                             \
        if (!resolve(where, name, path)) return real_openat(where, name, flags, mode); \
        return opened(path, flags, real_openat, where, name, mode);           \
    }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)

static size_t part(int verdict, size_t size) { return verdict == SHORT && size > 1 ? size / 2 : size; }

ssize_t write(int fd, const void *data, size_t size) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return REAL(write)(fd, data, size);
    int verdict = struck("write", path);
    if (verdict == FAIL) return -1;
    return REAL(write)(fd, data, part(verdict, size));
}
static ssize_t written_at(int fd, const void *data, size_t size, off_t offset) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return REAL(pwrite64)(fd, data, size, offset);
    int verdict = struck("pwrite", path);
    if (verdict == FAIL) return -1;
    return REAL(pwrite64)(fd, data, part(verdict, size), offset);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    return written_at(fd, data, size, offset);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    return written_at(fd, data, size, offset);
}
ssize_t writev(int fd, const struct iovec *parts, int number) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return REAL(writev)(fd, parts, number);
    ssize_t total = 0;
    for (int i = 0; i < number; i++) {
        ssize_t done = write(fd, parts[i].iov_base, parts[i].iov_len);
        if (done < 0) return total ? total : -1;
        total += done;
        if ((size_t)done < parts[i].iov_len) break;
    }
    return total;
}
#define SYNC(name)                                                                      \
    int name(int fd) {                                                                  \
        char path[PATH_MAX];                                                            \
        if (!path_of(fd, path)) return REAL(name)(fd);                                  \
        int verdict = struck(#name, path);                                              \
        if (verdict == FAIL) return -1;                                                 \
        if (verdict == LIE) return 0;                                                   \
        return REAL(name)(fd);                                                          \
    }
SYNC(fsync) SYNC(fdatasync)

#define TRUNCATE(name, type)                                                            \
    int name(int fd, type size) {                                                       \
        char path[PATH_MAX];                                                            \
        if (!path_of(fd, path)) return REAL(name)(fd, size);                            \
        if (struck("ftruncate", path) == FAIL) return -1;                               \
        return REAL(name)(fd, size);                                                    \
    }
TRUNCATE(ftruncate, off_t) TRUNCATE(ftruncate64, off64_t)

static int linked(int from, const char *old, int to, const char *new, int flags) {
    char one[PATH_MAX], two[PATH_MAX];
    if (!resolve(to, new, two) || !resolve(from, old, one))
        return REAL(linkat)(from, old, to, new, flags);
    if (struck("link", two) == FAIL) return -1;
    return REAL(linkat)(from, old, to, new, flags);
}
int link(const char *old, const char *new) { return linked(AT_FDCWD, old, AT_FDCWD, new, 0); }
int linkat(int from, const char *old, int to, const char *new, int flags) {
    return linked(from, old, to, new, flags);
}
static int renamed(int from, const char *old, int to, const char *new) {
    char one[PATH_MAX], two[PATH_MAX];
    if (!resolve(to, new, two) || !resolve(from, old, one)) return REAL(renameat)(from, old, to, new);
    if (struck("rename", two) == FAIL) return -1;
    return REAL(renameat)(from, old, to, new);
}
int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    char one[PATH_MAX], two[PATH_MAX];
    if (!resolve(to, new, two) || !resolve(from, old, one) || !is_there(one) || is_there(two))
        return REAL(renameat2)(from, old, to, new, flags);
    if (struck("rename", two) == FAIL) return -1;
    return REAL(renameat2)(from, old, to, new, flags);
}
int rename(const char *old, const char *new) { return renamed(AT_FDCWD, old, AT_FDCWD, new); }
int renameat(int from, const char *old, int to, const char *new) { return renamed(from, old, to, new); }

static int unlinked(int where, const char *name, int flags) {
    char path[PATH_MAX];
    if (!resolve(where, name, path) || !is_there(path)) return REAL(unlinkat)(where, name, flags);
    if (struck(flags & AT_REMOVEDIR ? "rmdir" : "unlink", path) == FAIL) return -1;
    return REAL(unlinkat)(where, name, flags);
}
int unlink(const char *name) { return unlinked(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinked(AT_FDCWD, name, AT_REMOVEDIR); }
int unlinkat(int where, const char *name, int flags) { return unlinked(where, name, flags); }

static int made(int where, const char *name, mode_t mode) {
    char path[PATH_MAX];
    if (!resolve(where, name, path) || is_there(path)) return REAL(mkdirat)(where, name, mode);
    if (struck("mkdir", path) == FAIL) return -1;
    return REAL(mkdirat)(where, name, mode);
}
int mkdir(const char *name, mode_t mode) { return made(AT_FDCWD, name, mode); }
int mkdirat(int where, const char *name, mode_t mode) { return made(where, name, mode); }

int fchmod(int fd, mode_t mode) {
    char path[PATH_MAX];
    if (path_of(fd, path) && struck("fchmod", path) == FAIL) return -1;
    return REAL(fchmod)(fd, mode);
}
// Closing a written file may report only now that a write failed (NFS); the descriptor is closed
// anyway.
int close(int fd) {
    char path[PATH_MAX];
    if (armed && (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY && path_of(fd, path) &&
        struck("close", path) == FAIL) {
        int saved = errno;
        REAL(close)(fd);
        errno = saved;
        return -1;
    }
    return REAL(close)(fd);
}
