"""The numbers of Linux system calls, by name, in every ABI that a process of a supported machine can use: data, and one reader of it.

The numbers are the kernel's own (``arch/*/entry/syscalls/*.tbl`` and ``scripts/syscall.tbl``, up to Linux 7.1). Entries are separated by ``;``: a
name and its numbers in the order of :data:`ABIS`, ``-`` where an ABI has no such call, a single number where all share it. The compiler of filters
(:mod:`bulle.linux.seccomp`) reads them when a filter is not cached yet; nothing reads them on the start path. x32 has no column: its numbers carry
bit 30, and filters refuse them whole. A call that is newer than this table is unknown here; filters answer ENOSYS to it, as an older kernel would.
"""

from __future__ import annotations

import functools

ABIS = ("x86_64", "i386", "aarch64", "arm", "riscv64")

TABLE_REVISION = 1
"""Part of the key under which compiled filters are cached; raise it with every change of the table."""


@functools.cache
def numbers(abi: str) -> dict[str, int]:
    """Name to number of every call that ``abi`` (one of :data:`ABIS`) has. KeyError for another ABI."""
    if abi not in ABIS:
        raise KeyError(abi)
    column = ABIS.index(abi)
    table: dict[str, int] = {}
    for entry in _TABLE.replace("\n", " ").split(";"):
        name, *values = entry.split()
        value = values[0] if len(values) == 1 else values[column]
        if value != "-":
            table[name] = int(value)
    return table


@functools.cache
def names() -> frozenset[str]:
    """Every name that some ABI has."""
    return frozenset(name for abi in ABIS for name in numbers(abi))


_TABLE = """
_llseek - 140 - 140 -; _newselect - 142 - 142 -; _sysctl 156 149 - 149 -; accept 43 - 202 285 202; accept4 288 364 242 366 242; access 21 33 - 33 -;
acct 163 51 89 51 89; add_key 248 286 217 309 217; adjtimex 159 124 171 124 171; afs_syscall 183 137 - - -; alarm 37 27 - - -;
arch_prctl 158 384 - - -; arm_fadvise64_64 - - - 270 -; arm_sync_file_range - - - 341 -; bdflush - 134 - 134 -; bind 49 361 200 282 200;
bpf 321 357 280 386 280; break - 17 - - -; breakpoint - - - 983041 -; brk 12 45 214 45 214; cacheflush - - - 983042 -; cachestat 451;
capget 125 184 90 184 90; capset 126 185 91 185 91; chdir 80 12 49 12 49; chmod 90 15 - 15 -; chown 92 182 - 182 -; chown32 - 212 - 212 -;
chroot 161 61 51 61 51; clock_adjtime 305 343 266 372 266; clock_adjtime64 - 405 - 405 -; clock_getres 229 266 114 264 114;
clock_getres_time64 - 406 - 406 -; clock_gettime 228 265 113 263 113; clock_gettime64 - 403 - 403 -; clock_nanosleep 230 267 115 265 115;
clock_nanosleep_time64 - 407 - 407 -; clock_settime 227 264 112 262 112; clock_settime64 - 404 - 404 -; clone 56 120 220 120 220; clone3 435;
close 3 6 57 6 57; close_range 436; connect 42 362 203 283 203; copy_file_range 326 377 285 391 285; creat 85 8 - 8 -; create_module 174 127 - - -;
delete_module 176 129 106 129 106; dup 32 41 23 41 23; dup2 33 63 - 63 -; dup3 292 330 24 358 24; epoll_create 213 254 - 250 -;
epoll_create1 291 329 20 357 20; epoll_ctl 233 255 21 251 21; epoll_ctl_old 214 - - - -; epoll_pwait 281 319 22 346 22; epoll_pwait2 441;
epoll_wait 232 256 - 252 -; epoll_wait_old 215 - - - -; eventfd 284 323 - 351 -; eventfd2 290 328 19 356 19; execve 59 11 221 11 221;
execveat 322 358 281 387 281; exit 60 1 93 1 93; exit_group 231 252 94 248 94; faccessat 269 307 48 334 48; faccessat2 439;
fadvise64 221 250 223 - 223; fadvise64_64 - 272 - - -; fallocate 285 324 47 352 47; fanotify_init 300 338 262 367 262;
fanotify_mark 301 339 263 368 263; fchdir 81 133 50 133 50; fchmod 91 94 52 94 52; fchmodat 268 306 53 333 53; fchmodat2 452; fchown 93 95 55 95 55;
fchown32 - 207 - 207 -; fchownat 260 298 54 325 54; fcntl 72 55 25 55 25; fcntl64 - 221 - 221 -; fdatasync 75 148 83 148 83;
fgetxattr 193 231 10 231 10; file_getattr 468; file_setattr 469; finit_module 313 350 273 379 273; flistxattr 196 234 13 234 13;
flock 73 143 32 143 32; fork 57 2 - 2 -; fremovexattr 199 237 16 237 16; fsconfig 431; fsetxattr 190 228 7 228 7; fsmount 432; fsopen 430;
fspick 433; fstat 5 108 80 108 80; fstat64 - 197 - 197 -; fstatat64 - 300 - 327 -; fstatfs 138 100 44 100 44; fstatfs64 - 269 - 267 -;
fsync 74 118 82 118 82; ftime - 35 - - -; ftruncate 77 93 46 93 46; ftruncate64 - 194 - 194 -; futex 202 240 98 240 98; futex_requeue 456;
futex_time64 - 422 - 422 -; futex_wait 455; futex_waitv 449; futex_wake 454; futimesat 261 299 - 326 -; get_kernel_syms 177 130 - - -;
get_mempolicy 239 275 236 320 236; get_robust_list 274 312 100 339 100; get_thread_area 211 244 - - -; get_tls - - - 983046 -;
getcpu 309 318 168 345 168; getcwd 79 183 17 183 17; getdents 78 141 - 141 -; getdents64 217 220 61 217 61; getegid 108 50 177 50 177;
getegid32 - 202 - 202 -; geteuid 107 49 175 49 175; geteuid32 - 201 - 201 -; getgid 104 47 176 47 176; getgid32 - 200 - 200 -;
getgroups 115 80 158 80 158; getgroups32 - 205 - 205 -; getitimer 36 105 102 105 102; getpeername 52 368 205 287 205; getpgid 121 132 155 132 155;
getpgrp 111 65 - 65 -; getpid 39 20 172 20 172; getpmsg 181 188 - - -; getppid 110 64 173 64 173; getpriority 140 96 141 96 141;
getrandom 318 355 278 384 278; getresgid 120 171 150 171 150; getresgid32 - 211 - 211 -; getresuid 118 165 148 165 148; getresuid32 - 209 - 209 -;
getrlimit 97 76 163 - 163; getrusage 98 77 165 77 165; getsid 124 147 156 147 156; getsockname 51 367 204 286 204; getsockopt 55 365 209 295 209;
gettid 186 224 178 224 178; gettimeofday 96 78 169 78 169; getuid 102 24 174 24 174; getuid32 - 199 - 199 -; getxattr 191 229 8 229 8;
getxattrat 464; gtty - 32 - - -; idle - 112 - - -; init_module 175 128 105 128 105; inotify_add_watch 254 292 27 317 27;
inotify_init 253 291 - 316 -; inotify_init1 294 332 26 360 26; inotify_rm_watch 255 293 28 318 28; io_cancel 210 249 3 247 3;
io_destroy 207 246 1 244 1; io_getevents 208 247 4 245 4; io_pgetevents 333 385 292 399 292; io_pgetevents_time64 - 416 - 416 -;
io_setup 206 245 0 243 0; io_submit 209 248 2 246 2; io_uring_enter 426; io_uring_register 427; io_uring_setup 425; ioctl 16 54 29 54 29;
ioperm 173 101 - - -; iopl 172 110 - - -; ioprio_get 252 290 31 315 31; ioprio_set 251 289 30 314 30; ipc - 117 - - -; kcmp 312 349 272 378 272;
kexec_file_load 320 - 294 401 294; kexec_load 246 283 104 347 104; keyctl 250 288 219 311 219; kill 62 37 129 37 129; landlock_add_rule 445;
landlock_create_ruleset 444; landlock_restrict_self 446; lchown 94 16 - 16 -; lchown32 - 198 - 198 -; lgetxattr 192 230 9 230 9; link 86 9 - 9 -;
linkat 265 303 37 330 37; listen 50 363 201 284 201; listmount 458; listns 470; listxattr 194 232 11 232 11; listxattrat 465;
llistxattr 195 233 12 233 12; lock - 53 - - -; lookup_dcookie 212 253 18 249 18; lremovexattr 198 236 15 236 15; lseek 8 19 62 19 62;
lsetxattr 189 227 6 227 6; lsm_get_self_attr 459; lsm_list_modules 461; lsm_set_self_attr 460; lstat 6 107 - 107 -; lstat64 - 196 - 196 -;
madvise 28 219 233 220 233; map_shadow_stack 453; mbind 237 274 235 319 235; membarrier 324 375 283 389 283; memfd_create 319 356 279 385 279;
memfd_secret 447 447 447 - 447; migrate_pages 256 294 238 400 238; mincore 27 218 232 219 232; mkdir 83 39 - 39 -; mkdirat 258 296 34 323 34;
mknod 133 14 - 14 -; mknodat 259 297 33 324 33; mlock 149 150 228 150 228; mlock2 325 376 284 390 284; mlockall 151 152 230 152 230;
mmap 9 90 222 - 222; mmap2 - 192 - 192 -; modify_ldt 154 123 - - -; mount 165 21 40 21 40; mount_setattr 442; move_mount 429;
move_pages 279 317 239 344 239; mprotect 10 125 226 125 226; mpx - 56 - - -; mq_getsetattr 245 282 185 279 185; mq_notify 244 281 184 278 184;
mq_open 240 277 180 274 180; mq_timedreceive 243 280 183 277 183; mq_timedreceive_time64 - 419 - 419 -; mq_timedsend 242 279 182 276 182;
mq_timedsend_time64 - 418 - 418 -; mq_unlink 241 278 181 275 181; mremap 25 163 216 163 216; mseal 462; msgctl 71 402 187 304 187;
msgget 68 399 186 303 186; msgrcv 70 401 188 302 188; msgsnd 69 400 189 301 189; msync 26 144 227 144 227; munlock 150 151 229 151 229;
munlockall 152 153 231 153 231; munmap 11 91 215 91 215; name_to_handle_at 303 341 264 370 264; nanosleep 35 162 101 162 101;
newfstatat 262 - 79 - 79; nfsservctl 180 169 42 169 42; nice - 34 - 34 -; oldfstat - 28 - - -; oldlstat - 84 - - -; oldolduname - 59 - - -;
oldstat - 18 - - -; olduname - 109 - - -; open 2 5 - 5 -; open_by_handle_at 304 342 265 371 265; open_tree 428; open_tree_attr 467;
openat 257 295 56 322 56; openat2 437; pause 34 29 - 29 -; pciconfig_iobase - - - 271 -; pciconfig_read - - - 272 -; pciconfig_write - - - 273 -;
perf_event_open 298 336 241 364 241; personality 135 136 92 136 92; pidfd_getfd 438; pidfd_open 434; pidfd_send_signal 424; pipe 22 42 - 42 -;
pipe2 293 331 59 359 59; pivot_root 155 217 41 218 41; pkey_alloc 330 381 289 395 289; pkey_free 331 382 290 396 290;
pkey_mprotect 329 380 288 394 288; poll 7 168 - 168 -; ppoll 271 309 73 336 73; ppoll_time64 - 414 - 414 -; prctl 157 172 167 172 167;
pread64 17 180 67 180 67; preadv 295 333 69 361 69; preadv2 327 378 286 392 286; prlimit64 302 340 261 369 261; process_madvise 440;
process_mrelease 448; process_vm_readv 310 347 270 376 270; process_vm_writev 311 348 271 377 271; prof - 44 - - -; profil - 98 - - -;
pselect6 270 308 72 335 72; pselect6_time64 - 413 - 413 -; ptrace 101 26 117 26 117; putpmsg 182 189 - - -; pwrite64 18 181 68 181 68;
pwritev 296 334 70 362 70; pwritev2 328 379 287 393 287; query_module 178 167 - - -; quotactl 179 131 60 131 60; quotactl_fd 443; read 0 3 63 3 63;
readahead 187 225 213 225 213; readdir - 89 - - -; readlink 89 85 - 85 -; readlinkat 267 305 78 332 78; readv 19 145 65 145 65;
reboot 169 88 142 88 142; recv - - - 291 -; recvfrom 45 371 207 292 207; recvmmsg 299 337 243 365 243; recvmmsg_time64 - 417 - 417 -;
recvmsg 47 372 212 297 212; remap_file_pages 216 257 234 253 234; removexattr 197 235 14 235 14; removexattrat 466; rename 82 38 - 38 -;
renameat 264 302 38 329 -; renameat2 316 353 276 382 276; request_key 249 287 218 310 218; restart_syscall 219 0 128 0 128;
riscv_flush_icache - - - - 259; riscv_hwprobe - - - - 258; rmdir 84 40 - 40 -; rseq 334 386 293 398 293; rseq_slice_yield 471;
rt_sigaction 13 174 134 174 134; rt_sigpending 127 176 136 176 136; rt_sigprocmask 14 175 135 175 135; rt_sigqueueinfo 129 178 138 178 138;
rt_sigreturn 15 173 139 173 139; rt_sigsuspend 130 179 133 179 133; rt_sigtimedwait 128 177 137 177 137; rt_sigtimedwait_time64 - 421 - 421 -;
rt_tgsigqueueinfo 297 335 240 363 240; sched_get_priority_max 146 159 125 159 125; sched_get_priority_min 147 160 126 160 126;
sched_getaffinity 204 242 123 242 123; sched_getattr 315 352 275 381 275; sched_getparam 143 155 121 155 121; sched_getscheduler 145 157 120 157 120;
sched_rr_get_interval 148 161 127 161 127; sched_rr_get_interval_time64 - 423 - 423 -; sched_setaffinity 203 241 122 241 122;
sched_setattr 314 351 274 380 274; sched_setparam 142 154 118 154 118; sched_setscheduler 144 156 119 156 119; sched_yield 24 158 124 158 124;
seccomp 317 354 277 383 277; security 185 - - - -; select 23 82 - - -; semctl 66 394 191 300 191; semget 64 393 190 299 190; semop 65 - 193 298 193;
semtimedop 220 - 192 312 192; semtimedop_time64 - 420 - 420 -; send - - - 289 -; sendfile 40 187 71 187 71; sendfile64 - 239 - 239 -;
sendmmsg 307 345 269 374 269; sendmsg 46 370 211 296 211; sendto 44 369 206 290 206; set_mempolicy 238 276 237 321 237; set_mempolicy_home_node 450;
set_robust_list 273 311 99 338 99; set_thread_area 205 243 - - -; set_tid_address 218 258 96 256 96; set_tls - - - 983045 -;
setdomainname 171 121 162 121 162; setfsgid 123 139 152 139 152; setfsgid32 - 216 - 216 -; setfsuid 122 138 151 138 151; setfsuid32 - 215 - 215 -;
setgid 106 46 144 46 144; setgid32 - 214 - 214 -; setgroups 116 81 159 81 159; setgroups32 - 206 - 206 -; sethostname 170 74 161 74 161;
setitimer 38 104 103 104 103; setns 308 346 268 375 268; setpgid 109 57 154 57 154; setpriority 141 97 140 97 140; setregid 114 71 143 71 143;
setregid32 - 204 - 204 -; setresgid 119 170 149 170 149; setresgid32 - 210 - 210 -; setresuid 117 164 147 164 147; setresuid32 - 208 - 208 -;
setreuid 113 70 145 70 145; setreuid32 - 203 - 203 -; setrlimit 160 75 164 75 164; setsid 112 66 157 66 157; setsockopt 54 366 208 294 208;
settimeofday 164 79 170 79 170; setuid 105 23 146 23 146; setuid32 - 213 - 213 -; setxattr 188 226 5 226 5; setxattrat 463; sgetmask - 68 - - -;
shmat 30 397 196 305 196; shmctl 31 396 195 308 195; shmdt 67 398 197 306 197; shmget 29 395 194 307 194; shutdown 48 373 210 293 210;
sigaction - 67 - 67 -; sigaltstack 131 186 132 186 132; signal - 48 - - -; signalfd 282 321 - 349 -; signalfd4 289 327 74 355 74;
sigpending - 73 - 73 -; sigprocmask - 126 - 126 -; sigreturn - 119 - 119 -; sigsuspend - 72 - 72 -; socket 41 359 198 281 198;
socketcall - 102 - - -; socketpair 53 360 199 288 199; splice 275 313 76 340 76; ssetmask - 69 - - -; stat 4 106 - 106 -; stat64 - 195 - 195 -;
statfs 137 99 43 99 43; statfs64 - 268 - 266 -; statmount 457; statx 332 383 291 397 291; stime - 25 - - -; stty - 31 - - -;
swapoff 168 115 225 115 225; swapon 167 87 224 87 224; symlink 88 83 - 83 -; symlinkat 266 304 36 331 36; sync 162 36 81 36 81;
sync_file_range 277 314 84 - 84; syncfs 306 344 267 373 267; sysfs 139 135 - 135 -; sysinfo 99 116 179 116 179; syslog 103 103 116 103 116;
tee 276 315 77 342 77; tgkill 234 270 131 268 131; time 201 13 - - -; timer_create 222 259 107 257 107; timer_delete 226 263 111 261 111;
timer_getoverrun 225 262 109 260 109; timer_gettime 224 261 108 259 108; timer_gettime64 - 408 - 408 -; timer_settime 223 260 110 258 110;
timer_settime64 - 409 - 409 -; timerfd_create 283 322 85 350 85; timerfd_gettime 287 326 87 354 87; timerfd_gettime64 - 410 - 410 -;
timerfd_settime 286 325 86 353 86; timerfd_settime64 - 411 - 411 -; times 100 43 153 43 153; tkill 200 238 130 238 130; truncate 76 92 45 92 45;
truncate64 - 193 - 193 -; tuxcall 184 - - - -; ugetrlimit - 191 - 191 -; ulimit - 58 - - -; umask 95 60 166 60 166; umount - 22 - - -;
umount2 166 52 39 52 39; uname 63 122 160 122 160; unlink 87 10 - 10 -; unlinkat 263 301 35 328 35; unshare 272 310 97 337 97; uprobe 336 - - - -;
uretprobe 335 - - - -; uselib 134 86 - 86 -; userfaultfd 323 374 282 388 282; usr26 - - - 983043 -; usr32 - - - 983044 -; ustat 136 62 - 62 -;
utime 132 30 - - -; utimensat 280 320 88 348 88; utimensat_time64 - 412 - 412 -; utimes 235 271 - 269 -; vfork 58 190 - 190 -;
vhangup 153 111 58 111 58; vm86 - 166 - - -; vm86old - 113 - - -; vmsplice 278 316 75 343 75; vserver 236 273 - 313 -; wait4 61 114 260 114 260;
waitid 247 284 95 280 95; waitpid - 7 - - -; write 1 4 64 4 64; writev 20 146 66 146 66
"""
