/* What a program without a C library needs: the entry point, system calls, a few string functions.
 *
 * The programs of this directory are a few KB, start in a fraction of a millisecond, and run in any image because they need nothing from it.
 * x86_64, aarch64 and riscv64; the numbers are from asm/unistd.h, the structures from the kernel's uapi headers (little-endian, 64 bits).
 */
#ifndef BULLE_FREESTANDING_H
#define BULLE_FREESTANDING_H

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;
typedef long i64;

#if defined(__aarch64__) || defined(__riscv) /* asm-generic/unistd.h */
enum {
    SYS_close = 57, SYS_lseek = 62, SYS_rt_sigaction = 134, SYS_rt_sigprocmask = 135, SYS_ioctl = 29, SYS_getpid = 172, SYS_socket = 198,
    SYS_connect = 203, SYS_sendmsg = 211, SYS_recvmsg = 212, SYS_clone = 220, SYS_execve = 221, SYS_wait4 = 260, SYS_kill = 129, SYS_fcntl = 25,
    SYS_flock = 32, SYS_getcwd = 17, SYS_geteuid = 175, SYS_setpgid = 154, SYS_rt_sigtimedwait = 137, SYS_write = 64, SYS_read = 63,
    SYS_exit_group = 94, SYS_openat = 56, SYS_mkdirat = 34, SYS_readlinkat = 78, SYS_faccessat = 48, SYS_ppoll = 73, SYS_signalfd4 = 74,
    SYS_dup3 = 24, SYS_pipe2 = 59, SYS_prlimit64 = 261, SYS_mount = 40, SYS_umount2 = 39, SYS_mknodat = 33, SYS_symlinkat = 36, SYS_linkat = 37,
    SYS_unlinkat = 35, SYS_fchownat = 54, SYS_fchown = 55, SYS_fchmod = 52, SYS_utimensat = 88, SYS_chroot = 51, SYS_fchdir = 50, SYS_chdir = 49,
    SYS_setsid = 157, SYS_setns = 268, SYS_unshare = 97, SYS_sethostname = 161, SYS_uname = 160, SYS_sync = 81, SYS_reboot = 142,
    SYS_finit_module = 273, SYS_clock_settime = 112, SYS_nanosleep = 101, SYS_prctl = 167, SYS_capset = 91, SYS_setresuid = 147, SYS_setresgid = 149,
    SYS_setgroups = 159, SYS_umask = 166, SYS_socketpair = 199, SYS_sendto = 206, SYS_recvfrom = 207, SYS_getdents64 = 61, SYS_statx = 291,
    SYS_mmap = 222, SYS_fsetxattr = 7, SYS_llistxattr = 12, SYS_lgetxattr = 9, SYS_seccomp = 277,
};
#endif
#if defined(__x86_64__)
enum {
    SYS_close = 3, SYS_lseek = 8, SYS_rt_sigaction = 13, SYS_rt_sigprocmask = 14, SYS_ioctl = 16, SYS_getpid = 39, SYS_socket = 41, SYS_connect = 42,
    SYS_sendmsg = 46, SYS_recvmsg = 47, SYS_clone = 56, SYS_execve = 59, SYS_wait4 = 61, SYS_kill = 62, SYS_fcntl = 72, SYS_flock = 73,
    SYS_getcwd = 79, SYS_geteuid = 107, SYS_setpgid = 109, SYS_rt_sigtimedwait = 128, SYS_write = 1, SYS_read = 0, SYS_exit_group = 231,
    SYS_openat = 257, SYS_mkdirat = 258, SYS_readlinkat = 267, SYS_faccessat = 269, SYS_ppoll = 271, SYS_signalfd4 = 289, SYS_dup3 = 292,
    SYS_pipe2 = 293, SYS_prlimit64 = 302, SYS_mount = 165, SYS_umount2 = 166, SYS_mknodat = 259, SYS_symlinkat = 266, SYS_linkat = 265,
    SYS_unlinkat = 263, SYS_fchownat = 260, SYS_fchown = 93, SYS_fchmod = 91, SYS_utimensat = 280, SYS_chroot = 161, SYS_fchdir = 81, SYS_chdir = 80,
    SYS_setsid = 112, SYS_setns = 308, SYS_unshare = 272, SYS_sethostname = 170, SYS_uname = 63, SYS_sync = 162, SYS_reboot = 169,
    SYS_finit_module = 313, SYS_clock_settime = 227, SYS_nanosleep = 35, SYS_prctl = 157, SYS_capset = 126, SYS_setresuid = 117, SYS_setresgid = 119,
    SYS_setgroups = 116, SYS_umask = 95, SYS_socketpair = 53, SYS_sendto = 44, SYS_recvfrom = 45, SYS_getdents64 = 217, SYS_statx = 332, SYS_mmap = 9,
    SYS_fsetxattr = 190, SYS_llistxattr = 195, SYS_lgetxattr = 192, SYS_seccomp = 317,
};
static inline i64 call6(i64 n, i64 a, i64 b, i64 c, i64 d, i64 e, i64 f)
{
    i64 result;
    register i64 r10 __asm__("r10") = d;
    register i64 r8 __asm__("r8") = e;
    register i64 r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(result) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return result;
}
__asm__(".globl _start\n_start:\n xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call begin\n");
#elif defined(__aarch64__)
static inline i64 call6(i64 n, i64 a, i64 b, i64 c, i64 d, i64 e, i64 f)
{
    register i64 x8 __asm__("x8") = n;
    register i64 x0 __asm__("x0") = a;
    register i64 x1 __asm__("x1") = b;
    register i64 x2 __asm__("x2") = c;
    register i64 x3 __asm__("x3") = d;
    register i64 x4 __asm__("x4") = e;
    register i64 x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}
__asm__(".globl _start\n_start:\n mov x29, #0\n mov x30, #0\n mov x0, sp\n bl begin\n");
#elif defined(__riscv) && __riscv_xlen == 64
static inline i64 call6(i64 n, i64 a, i64 b, i64 c, i64 d, i64 e, i64 f)
{
    register i64 a7 __asm__("a7") = n;
    register i64 a0 __asm__("a0") = a;
    register i64 a1 __asm__("a1") = b;
    register i64 a2 __asm__("a2") = c;
    register i64 a3 __asm__("a3") = d;
    register i64 a4 __asm__("a4") = e;
    register i64 a5 __asm__("a5") = f;
    __asm__ volatile("ecall" : "+r"(a0) : "r"(a7), "r"(a1), "r"(a2), "r"(a3), "r"(a4), "r"(a5) : "memory");
    return a0;
}
__asm__(".globl _start\n_start:\n li s0, 0\n mv a0, sp\n call begin\n");
#else
#error "no system calls for this architecture yet"
#endif
/* Since Linux 5.1 a system call has the same number everywhere. */
enum {
    SYS_pidfd_send_signal = 424, SYS_open_tree = 428, SYS_move_mount = 429, SYS_fsopen = 430, SYS_fsconfig = 431, SYS_fsmount = 432,
    SYS_pidfd_open = 434, SYS_close_range = 436, SYS_openat2 = 437, SYS_mount_setattr = 442,
};

#define CALL(number, a, b, c, d, e, f) call6(SYS_##number, (i64)(a), (i64)(b), (i64)(c), (i64)(d), (i64)(e), (i64)(f))
#define CALL4(number, a, b, c, d) CALL(number, a, b, c, d, 0, 0)
#define CALL3(number, a, b, c) CALL(number, a, b, c, 0, 0, 0)
#define CALL2(number, a, b) CALL(number, a, b, 0, 0, 0, 0)
#define CALL1(number, a) CALL(number, a, 0, 0, 0, 0, 0)

enum { EINTR = 4, ENOENT = 2, ENOEXEC = 8, EACCES = 13, EEXIST = 17, ENOTDIR = 20 };
enum {
    SIGHUP = 1, SIGINT = 2, SIGQUIT = 3, SIGKILL = 9, SIGUSR1 = 10, SIGUSR2 = 12, SIGALRM = 14, SIGTERM = 15, SIGCHLD = 17,
    SIGCONT = 18, SIGSTOP = 19, SIGTSTP = 20, SIGTTIN = 21, SIGTTOU = 22, SIGWINCH = 28,
};
enum { SIG_BLOCK = 0, SIG_UNBLOCK = 1, SIG_SETMASK = 2, SIG_IGN = 1 };
#define AT_FDCWD (-100)
#define O_RDWR 02
#define O_CREAT 0100
#define O_CLOEXEC 02000000
#define O_PATH 010000000

#define SIGNAL_BIT(number) (1ul << ((number) - 1))

/* The compiler may call these for plain assignments. */
void *memcpy(void *to, const void *from, u64 size)
{
    u8 *t = to;
    const u8 *f = from;
    while (size--)
        *t++ = *f++;
    return to;
}

void *memset(void *to, int value, u64 size)
{
    u8 *t = to;
    while (size--)
        *t++ = (u8)value;
    return to;
}

static u64 length_of(const char *text)
{
    u64 length = 0;
    while (text[length])
        length++;
    return length;
}

/* Copies text to `to` and returns where its NUL stands; never writes at or behind `end`, where it returns 0. */
static char *append(char *to, const char *end, const char *text)
{
    if (!to)
        return 0;
    while (*text) {
        if (to + 1 >= end)
            return 0;
        *to++ = *text++;
    }
    *to = 0;
    return to;
}

static const char *environment_value(char **environment, const char *name)
{
    u64 length = length_of(name);
    for (; *environment; environment++) {
        u64 i = 0;
        while (i < length && (*environment)[i] == name[i])
            i++;
        if (i == length && (*environment)[i] == '=')
            return *environment + length + 1;
    }
    return 0;
}

static void say(const char *text)
{
    CALL3(write, 2, text, length_of(text));
}

static void quit(int code)
{
    for (;;)
        CALL1(exit_group, code);
}

/* fork(2): the argument order of clone(2) differs between architectures, but not for what is zero here. */
static i64 fork_process(void)
{
    return CALL(clone, SIGCHLD, 0, 0, 0, 0, 0);
}

#define PATH_SIZE 4096

static int run(int count, char **arguments, char **environment);

__attribute__((used, noreturn)) void begin(u64 *stack)
{
    int count = (int)stack[0];
    char **arguments = (char **)(stack + 1);
    quit(run(count, arguments, arguments + count + 1));
    __builtin_unreachable();
}

#endif
