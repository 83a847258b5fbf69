/* bulle-agent: process 1 of a virtual machine's guest, which does what the host tells it. The protocol is docs/vm-agent.md; the host's side is
 * src/bulle/isolation/microvm/agent.py, where all logic lives: this program only knows system calls.
 *
 * As /init it mounts /dev, /proc and /sys, loads the modules that /modules names, finds the virtio port `bulle.agent` and speaks over it.
 * bulle-agent --descriptor N [--root PATH] speaks over an inherited socket and ends with it; PATH is where the container's root will be mounted.
 *
 * One process, one poll(2): commands and work on files are its children, connected by pipes, so that none waits for another. Memory is fixed.
 */
#include "agent-files.h"

enum { PROTOCOL = 1, SESSIONS = 256, HEADER = 12, PAYLOAD = 65536, INPUT_WINDOW = 65536, OUTPUT_WINDOW = 262144 };
enum { INCOMING = 4 * (PAYLOAD + HEADER), OUTGOING = 1 << 20, RESERVE = OUTGOING / 2, GATHERED = 2 << 20, TOLD_AFTER = 16384 };
enum { STEP = 1, EXEC, DATA, WINDOW, SIGNAL, WINSIZE, CLOSE, TAR_OUT, TAR_IN, READ, LIST, POWER_OFF, MORE, GREET, STAT };
enum { HELLO = 64, RESULT, STARTED, OUTPUT, ERROR, EXITED };
enum { POLLIN = 1, POLLOUT = 4, POLLHUP = 16, F_SETFL = 4, AGENT_DESCRIPTORS = 4096 };
enum { REBOOT_MAGIC = (int)0xfee1dead, REBOOT_MAGIC_2 = 672274793, REBOOT_RESTART = 0x1234567 };

struct waiting { int descriptor; short events; short happened; };

struct session {
    u32 number;
    int used, task, terminal, is_first;     /* task: the type of its request; it ends with RESULT, an execution (0) with EXITED */
    int process, reaped, status;
    int line, input, output, error;         /* the agent's ends, -1 where closed */
    int started, closed, input_ends, failure;
    u32 credit_output, credit_error;        /* bytes that the host still takes */
    u32 queue_start, queue_size, consumed;
    char text[TROUBLE_SIZE];
};

static struct session sessions[SESSIONS];
static u8 queues[SESSIONS][INPUT_WINDOW]; /* stdin that the command has not read; the host never has more on its way */
static u8 incoming[INCOMING], out[OUTGOING], gathered[GATHERED];
static u64 incoming_size, out_start, out_end, gathered_size;
static u32 gathered_session;
static int port = -1, signals = -1, is_init, own_pid_namespace = -1, ending;
static int first_process, first_pidfd = -1, first_started;

static u64 queued_out(void)
{
    return out_end - out_start;
}

/* Room for `size` more bytes in a row, or nothing. */
static u8 *room_out(u64 size)
{
    if (out_start == out_end)
        out_start = out_end = 0;
    if (OUTGOING - out_end < size && out_start) {
        u64 left = queued_out();
        for (u64 i = 0; i < left; i++)
            out[i] = out[out_start + i];
        out_start = 0;
        out_end = left;
    }
    return OUTGOING - out_end < size ? 0 : out + out_end;
}

static void put32(u8 *at, u32 value)
{
    memcpy(at, &value, 4);
}

static void put_header(u8 *at, u32 type, u32 session, u32 length)
{
    put32(at, length);
    put32(at + 4, session);
    put32(at + 8, type);
}

/* Small frames; half of the buffer is kept for them, which what one session may have to say never fills. */
static void tell(u32 type, u32 session, const void *payload, u64 length)
{
    u8 *at = room_out(HEADER + length);
    if (!at)
        return;
    put_header(at, type, session, (u32)length);
    memcpy(at + HEADER, payload, length);
    out_end += HEADER + length;
}

static void tell_result(u32 session, i64 error, const char *text)
{
    u8 payload[4 + TROUBLE_SIZE];
    u64 length = error ? length_of(text) : 0;
    put32(payload, (u32)(error < 0 ? -error : error));
    memcpy(payload + 4, text, length);
    tell(RESULT, session, payload, 4 + length);
}

static void tell_hello(void)
{
    struct { char system[65], node[65], release[65], version[65], machine[65], domain[65]; } name;
    u8 payload[4 + 130];
    u64 first, second;
    memset(&name, 0, sizeof name);
    CALL1(uname, &name);
    first = length_of(name.release) + 1;
    second = length_of(name.machine) + 1;
    put32(payload, PROTOCOL);
    memcpy(payload + 4, name.release, first);
    memcpy(payload + 4 + first, name.machine, second);
    tell(HELLO, 0, payload, 4 + first + second);
}

static void shut(int *descriptor)
{
    if (*descriptor >= 0)
        CALL1(close, *descriptor);
    *descriptor = -1;
}

static struct session *session_of(u32 number)
{
    for (int i = 0; i < SESSIONS; i++)
        if (sessions[i].used && sessions[i].number == number)
            return sessions + i;
    return 0;
}

static struct session *new_session(u32 number)
{
    for (int i = 0; i < SESSIONS; i++)
        if (!sessions[i].used) {
            memset(sessions + i, 0, sizeof sessions[i]);
            sessions[i].used = 1;
            sessions[i].number = number;
            sessions[i].line = sessions[i].input = sessions[i].output = sessions[i].error = -1;
            sessions[i].credit_output = sessions[i].credit_error = OUTPUT_WINDOW;
            return sessions + i;
        }
    return 0;
}

/* Pipes and the line of a new child: [0] and [1] of each pipe, the child's ends blocking. */
struct ends { int input[2], output[2], error[2], line[2]; };

static void shut_ends(struct ends *ends)
{
    int *all = ends->input;
    for (int i = 0; i < 8; i++)
        shut(all + i);
}

static i64 make_ends(struct ends *ends, int input, int error)
{
    int *all = ends->input;
    i64 result;
    for (int i = 0; i < 8; i++)
        all[i] = -1;
    result = CALL4(socketpair, AF_UNIX, SOCK_SEQPACKET | O_CLOEXEC, 0, ends->line);
    if (result >= 0)
        result = CALL2(pipe2, ends->output, O_CLOEXEC);
    if (result >= 0 && error)
        result = CALL2(pipe2, ends->error, O_CLOEXEC);
    if (result >= 0 && input)
        result = CALL2(pipe2, ends->input, O_CLOEXEC);
    if (result < 0) {
        shut_ends(ends);
        return result;
    }
    CALL3(fcntl, ends->output[0], F_SETFL, O_NONBLOCK);
    if (error)
        CALL3(fcntl, ends->error[0], F_SETFL, O_NONBLOCK);
    if (input)
        CALL3(fcntl, ends->input[1], F_SETFL, O_NONBLOCK);
    return 0;
}

/* A child keeps nothing of the others: a pipe whose end it had would not end. */
static void close_others(void)
{
    int kept[3] = {report_line, own_root, first_pidfd};
    for (u32 from = 3;;) {
        u32 next = ~0u;
        for (int i = 0; i < 3; i++)
            if (kept[i] >= (int)from && (u32)kept[i] < next)
                next = (u32)kept[i];
        if (next > from)
            CALL3(close_range, from, next == ~0u ? ~0u : next - 1, 0);
        if (next == ~0u)
            return;
        from = next + 1;
    }
}

/* In the child: its ends become 0, 1 and 2. They were all above 2 (the agent keeps those taken). */
static void take_ends(struct ends *ends)
{
    i64 null = CALL4(openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC, 0);
    report_line = ends->line[1];
    must(ends->input[0] < 0 || ends->error[1] < 0 ? null : 0, "/dev/null");
    CALL3(dup3, ends->input[0] >= 0 ? ends->input[0] : null, 0, 0);
    CALL3(dup3, ends->output[1], 1, 0);
    CALL3(dup3, ends->error[1] >= 0 ? ends->error[1] : null, 2, 0);
    close_others();
}

static void keep_ends(struct session *session, struct ends *ends, i64 process)
{
    session->process = (int)process;
    session->line = ends->line[0];
    session->input = ends->input[1];
    session->output = ends->output[0];
    session->error = ends->error[0];
    shut(ends->line + 1);
    shut(ends->input);
    shut(ends->output + 1);
    shut(ends->error + 1);
}

/* A child for work on files or for a step that must not hold up the others. */
static void start_task(struct session *session, u32 type, u8 *payload, u64 size, int joins)
{
    struct ends ends;
    u32 flags = size >= 4 && type != STEP ? read32(payload) : 0;
    char *path = (char *)payload + (type == READ ? 8 : 4), *end = (char *)payload + size, *words[MOST_WORDS];
    i64 process = make_ends(&ends, type == TAR_IN, 0);
    if (process >= 0) {
        process = fork_process();
        if (process == 0) {
            take_ends(&ends);
            if (type == STEP) {
                int count = split_words((char *)payload, size, words);
                must(prepare_mount(count, words), "step");
                join_container(first_pidfd);
                must(do_step(count, words), "step");
                quit(0);
            }
            if (!(flags & OWN_ROOT)) {
                i64 root;
                if (joins)
                    join_container(first_pidfd);
                root = open_container();
                must(root, "root");
                must(CALL1(fchdir, root), "root");
                must(CALL1(chroot, "."), "root");
                own_root = (int)root;
            }
            if (type == READ)
                read_out(read32(payload + 4), path);
            else if (type == LIST)
                list_out(path);
            else if (type == STAT)
                stat_out(flags, path);
            else if (type == TAR_OUT) {
                char *given = path + length_of(path) + 1;
                must(given < end ? 0 : -EPROTO, "payload");
                tar_out(flags, path, given, given + length_of(given) + 1, end);
            }
            else
                tar_in(flags, path);
            quit(0);
        }
        if (process < 0)
            shut_ends(&ends);
    }
    if (process < 0) {
        session->used = 0;
        tell_result(session->number, process, "fork");
        return;
    }
    session->task = (int)type;
    session->started = 1;
    keep_ends(session, &ends, process);
}

static void start_execution(u32 number, u8 *payload, u64 size)
{
    static struct execution wanted;
    struct session *session;
    struct ends ends;
    i64 process;
    int first;
    if (!parse_execution(payload, size, &wanted)) {
        tell_result(number, EPROTO, "exec");
        return;
    }
    first = (wanted.flags & FIRST) != 0;
    if (first ? first_process != 0 : !first_started) {
        tell_result(number, first ? EBUSY : ESRCH, "container");
        return;
    }
    session = new_session(number);
    if (!session) {
        tell_result(number, EAGAIN, "sessions");
        return;
    }
    process = make_ends(&ends, wanted.flags & STDIN_OPEN && !(wanted.flags & TERMINAL), !(wanted.flags & TERMINAL));
    if (process >= 0) /* of the child to come; this process stays where it is */
        process = first ? CALL1(unshare, CLONE_NEWPID) : CALL2(setns, first_pidfd, CLONE_NEWPID);
    if (process >= 0)
        process = fork_process();
    if (process == 0) {
        take_ends(&ends);
        run_execution(&wanted, first ? -1 : first_pidfd);
    }
    CALL2(setns, own_pid_namespace, CLONE_NEWPID);
    if (process < 0) {
        shut_ends(&ends);
        session->used = 0;
        tell_result(number, process, "fork");
        return;
    }
    session->terminal = (wanted.flags & TERMINAL) != 0;
    keep_ends(session, &ends, process);
    if (session->terminal)
        shut(&session->output); /* the terminal comes by the line */
    if (first) {
        session->is_first = 1;
        first_process = (int)process;
        first_pidfd = (int)CALL2(pidfd_open, process, 0);
    }
}

/* Whether a step is about the namespaces of the running container, or may take its time: then a child does it. */
static int reaches_container(int count, char **words)
{
    static const char *const places[] = {"mkdir", "file", "write", "mknod", "chown", "umount", "module"};
    if (same(words[0], "hostname") || same(words[0], "wait") || same(words[0], "sync"))
        return 1;
    if (count > 2 && (same(words[0], "mount") || same(words[0], "symlink")))
        return *words[2] != '/';
    for (u64 i = 0; i < sizeof places / sizeof *places; i++)
        if (count > 1 && same(words[0], places[i]))
            return *words[1] != '/';
    return 0;
}

static void start_step(u32 number, u8 *payload, u64 size)
{
    char *words[MOST_WORDS];
    int count = split_words((char *)payload, size, words);
    i64 result;
    if (count < 1) {
        tell_result(number, EPROTO, "step");
        return;
    }
    if (first_started && reaches_container(count, words)) {
        struct session *session = new_session(number);
        if (session)
            start_task(session, STEP, payload, size, 1);
        else
            tell_result(number, EAGAIN, "sessions");
        return;
    }
    *trouble = 0;
    result = do_step(count, words);
    tell_result(number, result < 0 ? result : 0, trouble);
}

static void start_file_work(u32 number, u32 type, u8 *payload, u64 size)
{
    struct session *session;
    u64 fixed = type == READ ? 8 : 4;
    u32 allowed = type == TAR_OUT ? OWN_ROOT | OVERLAY : type == TAR_IN ? OWN_ROOT | OVERLAY | KEEP_OWNER : type == STAT ? OWN_ROOT | FOLLOW : OWN_ROOT;
    if (size < fixed + 2 || payload[size - 1] || read32(payload) & ~allowed) {
        tell_result(number, EPROTO, "payload");
        return;
    }
    session = new_session(number);
    if (session)
        start_task(session, type, payload, size, first_started);
    else
        tell_result(number, EAGAIN, "sessions");
}

static void tell_consumed(struct session *session, u32 more, int all)
{
    u8 payload[5];
    session->consumed += more;
    if (!session->consumed || (!all && session->consumed < TOLD_AFTER))
        return;
    payload[0] = 0;
    put32(payload + 1, session->consumed);
    tell(WINDOW, session->number, payload, 5);
    session->consumed = 0;
}

/* What waits for the command's stdin, as far as it takes it. */
static void write_input(struct session *session)
{
    u8 *queue = queues[session - sessions];
    while (session->queue_size && session->input >= 0) {
        u32 part = session->queue_size < INPUT_WINDOW - session->queue_start ? session->queue_size : INPUT_WINDOW - session->queue_start;
        i64 written = CALL3(write, session->input, queue + session->queue_start, part);
        if (written == -EINTR)
            continue;
        if (written == -EAGAIN)
            break;
        if (written < 0) {
            shut(&session->input);
            break;
        }
        session->queue_start = (session->queue_start + (u32)written) % INPUT_WINDOW;
        session->queue_size -= (u32)written;
        tell_consumed(session, (u32)written, !session->queue_size);
    }
    if (session->input < 0 && session->queue_size && (session->started || session->closed)) {
        /* Nobody reads it any more. */
        tell_consumed(session, session->queue_size, 1);
        session->queue_size = 0;
    }
    if (session->input_ends && !session->queue_size && !session->terminal)
        shut(&session->input);
}

/* 0: the host sent more than it may. */
static int take_data(struct session *session, const u8 *data, u64 size)
{
    u8 *queue = queues[session - sessions];
    if (!size) {
        session->input_ends = 1;
        write_input(session);
        return 1;
    }
    if (session->input_ends || size > INPUT_WINDOW - session->queue_size)
        return 0;
    if (!session->queue_size && session->input >= 0 && session->started) {
        i64 written = CALL3(write, session->input, data, size);
        if (written > 0) {
            data += written;
            size -= (u64)written;
            tell_consumed(session, (u32)written, !size);
        }
    }
    for (u64 i = 0; i < size;) {
        u64 at = (session->queue_start + session->queue_size) % INPUT_WINDOW, part = size - i;
        if (part > INPUT_WINDOW - at)
            part = INPUT_WINDOW - at;
        memcpy(queue + at, data + i, part);
        session->queue_size += (u32)part;
        i += part;
    }
    write_input(session);
    return 1;
}

static int take_window(struct session *session, const u8 *payload, u64 size)
{
    u32 *credit;
    if (size != 5 || payload[0] < 1 || payload[0] > 2)
        return 0;
    credit = payload[0] == 1 ? &session->credit_output : &session->credit_error;
    if (read32(payload + 1) > OUTPUT_WINDOW - *credit)
        return 0;
    *credit += read32(payload + 1);
    return 1;
}

static void close_session(struct session *session)
{
    session->closed = 1;
    /* Before its streams end: it must not take that for a word. */
    if (!session->reaped) {
        CALL2(kill, session->process, SIGKILL);
        CALL2(kill, -session->process, SIGKILL);
    }
    shut(&session->input);
    shut(&session->output);
    shut(&session->error);
    session->queue_size = 0;
}

static void power_off(void)
{
    int status;
    if (!is_init) {
        ending = 1;
        return;
    }
    CALL2(kill, -1, SIGKILL);
    for (int patience = 0; patience < 2000; patience++) {
        i64 ended = CALL4(wait4, -1, &status, WNOHANG, 0);
        if (ended == -ECHILD)
            break;
        if (ended <= 0)
            sleep_milliseconds(1);
    }
    shut(&first_pidfd);
    CALL2(sync, 0, 0);
    for (int mounts = 0; mounts < 16 && CALL2(umount2, root_path, 0) == 0; mounts++)
        ;
    CALL4(reboot, REBOOT_MAGIC, REBOOT_MAGIC_2, REBOOT_RESTART, 0);
    quit(0);
}

/* One frame of the host; 0 where the stream is not to be trusted any more. */
static int take_frame(u32 type, u32 number, u8 *payload, u64 size)
{
    struct session *session = session_of(number);
    if (gathered_size && (number != gathered_session || (type != MORE && type != EXEC)))
        return 0;
    if (type == MORE || (type == EXEC && gathered_size)) {
        if (size > GATHERED - gathered_size || !size)
            return 0;
        memcpy(gathered + gathered_size, payload, size);
        gathered_size += size;
        gathered_session = number;
        if (type == MORE)
            return 1;
        payload = gathered;
        size = gathered_size;
        gathered_size = 0;
    }
    switch (type) {
    case STEP: case EXEC: case TAR_OUT: case TAR_IN: case READ: case LIST: case STAT:
        if (session)
            return 0; /* its number is taken */
        if (type == STEP)
            start_step(number, payload, size);
        else if (type == EXEC)
            start_execution(number, payload, size);
        else
            start_file_work(number, type, payload, size);
        return 1;
    case DATA:
        return !session || session->closed || take_data(session, payload, size);
    case WINDOW:
        return !session || take_window(session, payload, size);
    case SIGNAL:
        if (size != 4 || !read32(payload) || read32(payload) > 64)
            return 0;
        if (session && !session->reaped)
            CALL2(kill, session->process, read32(payload));
        return 1;
    case WINSIZE:
        if (size != 4)
            return 0;
        if (session && session->terminal && session->output >= 0) {
            unsigned short window[4] = {0, 0, 0, 0};
            memcpy(window, payload, 4);
            CALL3(ioctl, session->output, TIOCSWINSZ, window);
        }
        return 1;
    case CLOSE:
        if (session)
            close_session(session);
        return !size;
    case POWER_OFF:
        power_off();
        return 1;
    case GREET:
        tell_hello();
        return !size;
    default:
        return 0;
    }
}

static int take_frames(void)
{
    u64 at = 0;
    while (incoming_size - at >= HEADER && queued_out() < RESERVE && !ending) {
        u32 length = read32(incoming + at), number = read32(incoming + at + 4), type = read32(incoming + at + 8);
        if (length > PAYLOAD || type > 255)
            return 0;
        if (incoming_size - at < HEADER + length)
            break;
        if (!take_frame(type, number, incoming + at + HEADER, length))
            return 0;
        at += HEADER + length;
    }
    if (at) {
        for (u64 i = 0; i + at < incoming_size; i++)
            incoming[i] = incoming[at + i];
        incoming_size -= at;
    }
    return 1;
}

/* Reads what the host sent; 0 at the end. */
static int read_port(void)
{
    i64 got = CALL3(read, port, incoming + incoming_size, INCOMING - incoming_size);
    if (got > 0) {
        incoming_size += (u64)got;
        return 1;
    }
    if (got == -EAGAIN || got == -EINTR)
        return 1;
    if (!is_init)
        return 0;
    /* Nobody on the host's side: until there is somebody. What was half said will not be finished. */
    incoming_size = gathered_size = 0;
    sleep_milliseconds(20);
    return 1;
}

static int write_port(void)
{
    while (queued_out()) {
        i64 written = CALL3(write, port, out + out_start, queued_out());
        if (written == -EINTR)
            continue;
        if (written == -EAGAIN)
            return 1;
        if (written < 0 && is_init) {
            out_start = out_end;
            return 1;
        }
        if (written < 0)
            return 0;
        out_start += (u64)written;
    }
    return 1;
}

/* Moves what a command wrote to the host, as far as both sides allow. */
static void read_stream(struct session *session, int *descriptor, u32 type, u32 *credit)
{
    while (*descriptor >= 0 && *credit && queued_out() < RESERVE) {
        u64 most = *credit < PAYLOAD ? *credit : PAYLOAD;
        u8 *at = room_out(HEADER + most);
        i64 got;
        if (!at)
            return;
        got = CALL3(read, *descriptor, at + HEADER, most);
        if (got == -EINTR)
            continue;
        if (got > 0) {
            put_header(at, type, session->number, (u32)got);
            out_end += HEADER + (u64)got;
            *credit -= (u32)got;
            if ((u64)got < most && !session->reaped)
                return;
            continue;
        }
        /* What a command leaves running keeps its pipes: what it wrote itself is here by now. A terminal hangs up. */
        if (got == -EAGAIN && (!session->reaped || session->terminal))
            return;
        shut(descriptor);
    }
}

/* A child's word: what failed, or its terminal. The end: its command was executed. */
static void read_line(struct session *session)
{
    static struct report report;
    struct control control;
    struct vector vector = {&report, sizeof report};
    struct message message = {0, 0, 0, &vector, 1, &control, sizeof control, 0, 0};
    i64 got = CALL3(recvmsg, session->line, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    int descriptor = -1;
    if (got == -EAGAIN || got == -EINTR)
        return;
    if (got == sizeof report) {
        if (message.control_length >= 16 + sizeof(int) && control.level == SOL_SOCKET && control.type == SCM_RIGHTS)
            descriptor = control.descriptor;
        if (report.kind == REPORT_FAILED && !session->failure) {
            session->failure = report.error;
            memcpy(session->text, report.text, TROUBLE_SIZE - 1);
        } else if (report.kind == REPORT_TERMINAL && descriptor >= 0 && session->output < 0 && !session->closed) {
            CALL3(fcntl, descriptor, F_SETFL, O_RDWR | O_NONBLOCK);
            session->output = descriptor;
            session->input = (int)CALL3(fcntl, descriptor, F_DUPFD_CLOEXEC, 3);
            descriptor = -1;
        }
        shut(&descriptor);
        return;
    }
    shut(&session->line);
    if (session->failure || session->task)
        return;
    session->started = 1;
    if (session->is_first)
        first_started = first_process == session->process;
    {
        u8 payload[4];
        put32(payload, (u32)session->process);
        tell(STARTED, session->number, payload, 4);
    }
    write_input(session);
}

static void reap(void)
{
    u8 information[128];
    int status;
    i64 ended;
    CALL3(read, signals, information, sizeof information);
    while ((ended = CALL4(wait4, -1, &status, WNOHANG, 0)) > 0) {
        if (ended == first_process) {
            first_process = first_started = 0;
            shut(&first_pidfd);
        }
        for (int i = 0; i < SESSIONS; i++)
            if (sessions[i].used && !sessions[i].reaped && sessions[i].process == ended) {
                sessions[i].reaped = 1;
                sessions[i].status = status;
            }
    }
}

/* The last words of a session, once there is nothing more to come. */
static void finish(struct session *session)
{
    u8 payload[4];
    if (!session->reaped || session->line >= 0)
        return;
    if (session->failure) {
        tell_result(session->number, session->failure, session->text);
    } else {
        if (session->output >= 0 || session->error >= 0)
            return;
        if (session->task) {
            if (session->status) {
                tell_result(session->number, ECANCELED, "it was ended");
            } else {
                if (session->task != STEP && session->task != TAR_IN)
                    tell(OUTPUT, session->number, 0, 0);
                tell_result(session->number, 0, "");
            }
        } else {
            tell(OUTPUT, session->number, 0, 0);
            tell(ERROR, session->number, 0, 0);
            put32(payload, (u32)session->status);
            tell(EXITED, session->number, payload, 4);
        }
    }
    shut(&session->input);
    shut(&session->output);
    shut(&session->error);
    session->used = 0;
}

static void serve_session(struct session *session)
{
    if (session->line >= 0 && session->reaped)
        while (session->line >= 0)
            read_line(session);
    if (session->started) {
        if (session->queue_size || session->input_ends)
            write_input(session);
        read_stream(session, &session->output, OUTPUT, &session->credit_output);
        read_stream(session, &session->error, ERROR, &session->credit_error);
    }
    if (queued_out() < RESERVE)
        finish(session);
}

static int add(struct waiting *waiting, int count, int descriptor, short events)
{
    waiting[count] = (struct waiting){descriptor, events, 0};
    return count + 1;
}

static int serve(void)
{
    static struct waiting waiting[2 + 4 * SESSIONS];
    for (;;) {
        int count = 0, room = queued_out() < RESERVE, busy = 0;
        count = add(waiting, count, port, (short)((room && incoming_size < INCOMING ? POLLIN : 0) | (queued_out() ? POLLOUT : 0)));
        count = add(waiting, count, signals, POLLIN);
        for (int i = 0; i < SESSIONS; i++) {
            struct session *session = sessions + i;
            if (!session->used)
                continue;
            if (session->line >= 0)
                count = add(waiting, count, session->line, POLLIN);
            if (session->input >= 0 && session->queue_size && session->started)
                count = add(waiting, count, session->input, POLLOUT);
            if (session->output >= 0 && session->started && session->credit_output && room)
                count = add(waiting, count, session->output, POLLIN);
            if (session->error >= 0 && session->started && session->credit_error && room)
                count = add(waiting, count, session->error, POLLIN);
        }
        if (CALL(ppoll, waiting, count, 0, 0, 8, 0) < 0)
            continue;
        if (waiting[1].happened)
            reap();
        if (waiting[0].happened & ~POLLOUT && (waiting[0].events & POLLIN || waiting[0].happened & ~POLLIN) && incoming_size < INCOMING && !read_port())
            return 0;
        if (!take_frames())
            return 1;
        for (int at = 2; at < count; at++)
            if (waiting[at].happened)
                busy = 1;
        for (int i = 0; i < SESSIONS; i++) {
            struct session *session = sessions + i;
            if (!session->used)
                continue;
            if (busy && session->line >= 0)
                read_line(session);
            serve_session(session);
        }
        if (!write_port())
            return 0;
        if (ending)
            return 0;
    }
}

static void load_modules(void)
{
    static char list[65536];
    char *at = list;
    i64 size, file = CALL4(openat, AT_FDCWD, "/modules", O_CLOEXEC, 0);
    if (file < 0)
        return;
    size = CALL3(read, file, list, sizeof list - 1);
    CALL1(close, file);
    while (size > 0 && *at) {
        char *end = at;
        while (*end && *end != '\n')
            end++;
        if (*end)
            *end++ = 0;
        if (*at && load_module(at) < 0) {
            say("bulle-agent: a module could not be loaded: ");
            say(at);
            say("\n");
        }
        at = end;
    }
}

/* The virtio port by its name: the driver makes it when it gets to it. */
static void find_port(void)
{
    char path[256], name[32], *at;
    u8 entries[2048] __attribute__((aligned(8)));
    for (;; sleep_milliseconds(1)) {
        i64 size, directory = CALL4(openat, AT_FDCWD, "/sys/class/virtio-ports", O_DIRECTORY | O_CLOEXEC, 0);
        if (directory < 0)
            continue;
        while (port < 0 && (size = CALL3(getdents64, directory, entries, sizeof entries)) > 0)
            for (i64 place = 0; place < size && port < 0; place += entries[place + 16] | entries[place + 17] << 8) {
                const char *entry = (const char *)entries + place + 19, *end = path + sizeof path;
                i64 file, got;
                if (*entry == '.' || !append(append(path, end, entry), end, "/name"))
                    continue;
                file = CALL4(openat, directory, path, O_CLOEXEC, 0);
                got = file < 0 ? file : CALL3(read, file, name, sizeof name - 1);
                if (file >= 0)
                    CALL1(close, file);
                if (got <= 0)
                    continue;
                name[got] = 0;
                for (at = name; *at && *at != '\n'; at++)
                    ;
                *at = 0;
                if (same(name, "bulle.agent") && append(append(path, end, "/dev/"), end, entry))
                    port = (int)CALL4(openat, AT_FDCWD, path, O_RDWR | O_NONBLOCK | O_CLOEXEC, 0);
            }
        CALL1(close, directory);
        if (port >= 0)
            return;
    }
}

static void start_machine(void)
{
    is_init = 1;
    /* Until they execute a command, this process's children show nothing to those who look at them from inside the container. PR_SET_DUMPABLE(2const) */
    CALL(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0, 0);
    for (int i = 0; i < 3; i++) {
        static const char *const places[] = {"/dev", "/proc", "/sys"}, *const types[] = {"devtmpfs", "proc", "sysfs"};
        CALL3(mkdirat, AT_FDCWD, places[i], 0755);
        CALL(mount, types[i], places[i], types[i], MS_NOSUID | MS_NOEXEC * (i > 0), 0, 0);
    }
    CALL3(mkdirat, AT_FDCWD, root_path, 0755);
    load_modules();
    find_port();
}

static int run(int count, char **arguments, char **environment)
{
    u64 all = ~0ul, child = SIGNAL_BIT(SIGCHLD), number = 0, limit[2] = {AGENT_DESCRIPTORS, AGENT_DESCRIPTORS};
    i64 opened;
    int result;
    (void)environment;
    CALL4(rt_sigprocmask, SIG_SETMASK, &all, 0, 8);
    /* 0, 1 and 2 are taken, so that no pipe is one of them. */
    for (opened = 0; opened >= 0 && opened < 3;) {
        opened = CALL4(openat, AT_FDCWD, "/dev/console", O_RDWR | O_NOCTTY | O_CLOEXEC, 0);
        if (opened < 0)
            opened = CALL4(openat, AT_FDCWD, "/", O_PATH | O_CLOEXEC, 0);
    }
    CALL1(close, opened);
    for (int i = 1; i < count; i += 2) {
        if (i + 1 < count && same(arguments[i], "--descriptor") && number_of(arguments[i + 1], 10, &number))
            port = (int)number;
        else if (i + 1 < count && same(arguments[i], "--root"))
            root_path = arguments[i + 1];
        else {
            say("bulle-agent: usage: bulle-agent [--descriptor N [--root PATH]]\n");
            return 125;
        }
    }
    own_root = (int)CALL4(openat, AT_FDCWD, "/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    if (port < 0)
        start_machine();
    else {
        dies_with_agent = 1;
        CALL3(fcntl, port, F_SETFL, O_RDWR | O_NONBLOCK);
        CALL3(fcntl, port, 2 /* F_SETFD */, 1);
    }
    CALL4(prlimit64, 0, RLIMIT_NOFILE, 0, own_limit);
    if (own_limit[1] > AGENT_DESCRIPTORS)
        limit[1] = own_limit[1];
    CALL4(prlimit64, 0, RLIMIT_NOFILE, limit, 0);
    CALL1(umask, 0);
    own_pid_namespace = (int)CALL4(openat, AT_FDCWD, "/proc/self/ns/pid", O_CLOEXEC, 0);
    signals = (int)CALL4(signalfd4, -1, &child, 8, O_CLOEXEC | O_NONBLOCK);
    tell_hello();
    result = serve();
    for (int i = 0; i < SESSIONS; i++)
        if (sessions[i].used)
            close_session(sessions + i);
    if (result)
        say("bulle-agent: the host's stream is malformed\n");
    if (is_init)
        power_off();
    return result;
}
