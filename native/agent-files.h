/* What the agent does with files, each in a child of its own that stands in the container's root or in the agent's: READ, LIST, TAR_OUT, TAR_IN.
 *
 * The child works with blocking pipes: 0 is the tar that comes in, 1 what goes out. Memory is fixed. A tar is POSIX's (pax) as OCI's layers are:
 * extended headers only for what does not fit, SCHILY.xattr.* for extended attributes; read are ustar, pax and GNU's long names.
 */
#ifndef BULLE_AGENT_FILES_H
#define BULLE_AGENT_FILES_H

#include "agent-execution.h"

enum { OWN_ROOT = 1, OVERLAY = 2, KEEP_OWNER = 4, FOLLOW = 8 };
enum { BLOCK = 512, LONG_NAME = 65536, DEEPEST = 1000, RECORDS_SIZE = 1 << 18, BUFFER_SIZE = 65536, LINK_SLOTS = 1 << 16, NAMES_SIZE = 1 << 24 };
enum { PROT_READ_WRITE = 3, MAP_PRIVATE_ANONYMOUS = 0x4022 /* and MAP_NORESERVE */ };

static u8 outgoing[BUFFER_SIZE];
static u64 outgoing_size;
static char records[RECORDS_SIZE], attribute_names[65536], attribute_value[65536], entry_name[LONG_NAME], link_name[LONG_NAME];
static u64 records_size;
static u8 block[BLOCK];

/* Names of files that have several, or times of directories: found again by number. The first that do not fit are treated as if they had one name. */
struct remembered { u64 inode, device; u32 name, used; i64 time; u32 nanoseconds, pad; };
static struct remembered *remembered;
static char *names;
static u64 names_size;

static void flush(void)
{
    must(write_all(1, outgoing, outgoing_size), "write");
    outgoing_size = 0;
}

static void emit(const void *data, u64 size)
{
    const u8 *at = data;
    while (size) {
        u64 part = BUFFER_SIZE - outgoing_size < size ? BUFFER_SIZE - outgoing_size : size;
        memcpy(outgoing + outgoing_size, at, part);
        outgoing_size += part;
        at += part;
        size -= part;
        if (outgoing_size == BUFFER_SIZE)
            flush();
    }
}

static void emit_padding(u64 size)
{
    static const u8 zeros[BLOCK];
    emit(zeros, (BLOCK - size % BLOCK) % BLOCK);
}

static void octal(u8 *field, u32 width, u64 value)
{
    field[--width] = 0;
    while (width--) {
        field[width] = (u8)('0' + (value & 7));
        value >>= 3;
    }
}

static void seal_and_emit(void)
{
    u32 sum = 0;
    memset(block + 148, ' ', 8);
    for (int i = 0; i < BLOCK; i++)
        sum += block[i];
    octal(block + 148, 7, sum);
    emit(block, BLOCK);
}

static char *decimal(u64 number, char *end)
{
    *--end = 0;
    do
        *--end = (char)('0' + number % 10);
    while ((number /= 10));
    return end;
}

/* "LENGTH key=value\n", where LENGTH counts itself too */
static void add_record(const char *key, const char *suffix, const char *value, u64 size)
{
    char digits[24];
    u64 rest = length_of(key) + length_of(suffix) + size + 3, length = rest + 1;
    char *text;
    while (length != rest + length_of(decimal(length, digits + sizeof digits)))
        length = rest + length_of(decimal(length, digits + sizeof digits));
    must(records_size + length > RECORDS_SIZE ? -E2BIG : 0, "extended attributes");
    text = decimal(length, digits + sizeof digits);
    for (const char *part = text; *part; part++)
        records[records_size++] = *part;
    records[records_size++] = ' ';
    for (const char *part = key; *part; part++)
        records[records_size++] = *part;
    for (const char *part = suffix; *part; part++)
        records[records_size++] = *part;
    records[records_size++] = '=';
    memcpy(records + records_size, value, size);
    records_size += size;
    records[records_size++] = '\n';
}

static int begins(const char *text, const char *with)
{
    while (*with)
        if (*text++ != *with++)
            return 0;
    return 1;
}

static int kept_attribute(const char *name, u32 flags)
{
    return begins(name, "user.") || same(name, "security.capability") || (flags & OVERLAY && begins(name, "trusted."));
}

static void add_attributes(const char *name, u32 flags)
{
    i64 size = CALL3(llistxattr, name, attribute_names, sizeof attribute_names - 1);
    for (i64 at = 0; at < size; at += (i64)length_of(attribute_names + at) + 1) {
        const char *attribute = attribute_names + at;
        i64 length;
        if (!kept_attribute(attribute, flags))
            continue;
        length = CALL4(lgetxattr, name, attribute, attribute_value, sizeof attribute_value);
        if (length >= 0)
            add_record("SCHILY.xattr.", attribute, attribute_value, (u64)length);
    }
}

static void add_number(const char *key, u64 number, u64 limit)
{
    char digits[24];
    const char *text = decimal(number, digits + sizeof digits);
    if (number >= limit)
        add_record(key, "", text, length_of(text));
}

/* Seconds with their fraction, which the block has no room for. */
static void add_time(const struct timestamp *time)
{
    char digits[24], value[40];
    const char *text = decimal((u64)time->seconds, digits + sizeof digits);
    u64 length = length_of(text);
    if (!time->nanoseconds || time->seconds < 0)
        return;
    memcpy(value, text, length);
    value[length++] = '.';
    for (u32 left = time->nanoseconds, scale = 100000000; scale; left %= scale, scale /= 10)
        value[length++] = (char)('0' + left / scale);
    add_record("mtime", "", value, length);
}

static void fill_block(const char *name, const char *link, const struct statx *status, u64 size, char type)
{
    u64 length = length_of(name);
    memset(block, 0, BLOCK);
    memcpy(block, name, length < 100 ? length : 100);
    octal(block + 100, 8, status->mode & 07777);
    octal(block + 108, 8, status->uid & 07777777);
    octal(block + 116, 8, status->gid & 07777777);
    octal(block + 124, 12, size & 077777777777);
    octal(block + 136, 12, status->modified.seconds < 0 ? 0 : (u64)status->modified.seconds & 077777777777);
    block[156] = (u8)type;
    length = length_of(link);
    memcpy(block + 157, link, length < 100 ? length : 100);
    memcpy(block + 257, "ustar\00000", 8);
    octal(block + 329, 8, status->device_major);
    octal(block + 337, 8, status->device_minor);
}

/* The header of the file `name` in the working directory, which the tar calls `path`. */
static void emit_header(const char *name, const char *path, const char *link, const struct statx *status, u64 size, char type, u32 flags)
{
    records_size = 0;
    if (length_of(path) > 100)
        add_record("path", "", path, length_of(path));
    if (length_of(link) > 100)
        add_record("linkpath", "", link, length_of(link));
    add_number("uid", status->uid, 010000000);
    add_number("gid", status->gid, 010000000);
    add_number("size", size, 0100000000000);
    add_time(&status->modified);
    if (type != '1')
        add_attributes(name, flags);
    if (records_size) {
        static const struct statx plain = {.mode = 0644};
        fill_block("PaxHeaders/entry", "", &plain, records_size, 'x');
        seal_and_emit();
        emit(records, records_size);
        emit_padding(records_size);
    }
    fill_block(path, link, status, size, type);
    seal_and_emit();
}

static void *fresh_memory(u64 size)
{
    i64 memory = CALL(mmap, 0, size, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0);
    must(memory, "memory");
    return (void *)memory;
}

static u32 remember_name(const char *name)
{
    u64 length = length_of(name) + 1;
    u32 at = (u32)names_size;
    if (names_size + length > NAMES_SIZE)
        return 0;
    memcpy(names + at, name, length);
    names_size += length;
    return at;
}

static void prepare_memory(void)
{
    remembered = fresh_memory(LINK_SLOTS * sizeof *remembered);
    names = fresh_memory(NAMES_SIZE);
    names_size = 1;
}

/* The first name of a file that has several, or 0 where this is the first. */
static const char *first_name(const struct statx *status, const char *path)
{
    u64 device = (u64)status->on_major << 32 | status->on_minor, slot = (status->inode * 0x9E3779B97F4A7C15ul ^ device) % LINK_SLOTS;
    for (int tries = 0; tries < 64; tries++, slot = (slot + 1) % LINK_SLOTS) {
        struct remembered *entry = remembered + slot;
        if (entry->used && entry->inode == status->inode && entry->device == device)
            return names + entry->name;
        if (!entry->used) {
            entry->name = remember_name(path);
            entry->used = entry->name != 0;
            entry->inode = status->inode;
            entry->device = device;
            return 0;
        }
    }
    return 0;
}

static void emit_file(const char *name, const char *path, u32 flags)
{
    struct statx status;
    u64 left;
    i64 file = CALL4(openat, AT_FDCWD, name, O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0);
    if (file == -ENOENT || file == -ELOOP)
        return; /* removed or replaced meanwhile */
    failed(file, "read", path);
    must(file, "read");
    must(status_of(file, &status), "read");
    if ((status.mode & S_IFMT) == S_IFREG) {
        emit_header(name, path, "", &status, status.size, '0', flags);
        for (left = status.size; left;) {
            u64 room = BUFFER_SIZE - outgoing_size, part = left < room ? left : room;
            i64 got = CALL3(read, file, outgoing + outgoing_size, part);
            if (got == -EINTR)
                continue;
            must(got, "read");
            if (!got) { /* it became shorter: the rest is zeros, as other programs do it */
                memset(outgoing + outgoing_size, 0, part);
                got = (i64)part;
            }
            left -= (u64)got;
            outgoing_size += (u64)got;
            if (outgoing_size == BUFFER_SIZE)
                flush();
        }
        emit_padding(status.size);
    }
    CALL1(close, file);
}

/* Paths that are left out: NUL-terminated, one after the other. */
static int left_out(const char *path, const char *list, const char *end)
{
    for (; list < end; list += length_of(list) + 1)
        if (same(path, list))
            return 1;
    return 0;
}

static void walk(i64 directory, u64 length, int depth, u32 flags, const char *list, const char *end);

/* One file in the working directory; entry_name is its path in the tar, `length` long. */
static void emit_entry(const char *name, u64 length, int depth, u32 flags, const char *list, const char *end)
{
    struct statx status;
    const char *first;
    u32 kind;
    i64 here;
    if (CALL(statx, AT_FDCWD, name, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &status, 0) < 0)
        return;
    kind = status.mode & S_IFMT;
    if (kind == S_IFSOCK)
        return; /* no tar has them */
    if (kind != S_IFDIR && status.links > 1 && (first = first_name(&status, entry_name)) != 0)
        emit_header(name, entry_name, first, &status, 0, '1', flags);
    else if (kind == S_IFREG)
        emit_file(name, entry_name, flags);
    else if (kind == S_IFLNK) {
        i64 size = CALL4(readlinkat, AT_FDCWD, name, link_name, PATH_SIZE);
        if (size < 0)
            return;
        link_name[size] = 0;
        emit_header(name, entry_name, link_name, &status, 0, '2', flags);
    } else if (kind == S_IFDIR) {
        here = CALL4(openat, AT_FDCWD, name, O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
        if (here == -ENOENT || here == -ENOTDIR || here == -ELOOP)
            return;
        failed(here, "read", entry_name);
        must(here, "read");
        must(length + 2 > LONG_NAME || depth > DEEPEST ? -ENAMETOOLONG : 0, "tar: too deep");
        entry_name[length] = '/';
        entry_name[length + 1] = 0;
        emit_header(name, entry_name, "", &status, 0, '5', flags);
        walk(here, length + 1, depth + 1, flags, list, end);
        CALL1(close, here);
    } else
        emit_header(name, entry_name, "", &status, 0, kind == S_IFIFO ? '6' : kind == S_IFCHR ? '3' : '4', flags);
}

static void walk(i64 directory, u64 length, int depth, u32 flags, const char *list, const char *end)
{
    u8 entries[2048] __attribute__((aligned(8)));
    i64 size;
    while ((size = CALL3(getdents64, directory, entries, sizeof entries)) > 0)
        for (i64 at = 0; at < size;) {
            const char *name = (const char *)entries + at + 19;
            u64 more = length_of(name);
            at += entries[at + 16] | entries[at + 17] << 8;
            if (same(name, ".") || same(name, ".."))
                continue;
            must(length + more + 2 > LONG_NAME ? -ENAMETOOLONG : 0, "tar: too deep");
            memcpy(entry_name + length, name, more + 1);
            must(CALL1(fchdir, directory), "read");
            if (!left_out(entry_name, list, end))
                emit_entry(name, length + more, depth, flags, list, end);
        }
    must(size, "read");
}

/* Under a given name; where that is empty, a directory's entries are named below it (it is "./"), anything else by its own last name. */
static void tar_out(u32 flags, const char *path, const char *given, const char *list, const char *end)
{
    static const u8 zeros[2 * BLOCK];
    struct statx status;
    const char *name;
    i64 here = open_below(own_root, path, O_PATH | O_NOFOLLOW, 0);
    failed(here, "tar", path);
    must(here, "tar");
    prepare_memory();
    must(status_of(here, &status), "tar");
    if ((status.mode & S_IFMT) == S_IFDIR) {
        i64 readable = CALL4(openat, here, ".", O_DIRECTORY | O_CLOEXEC, 0);
        must(readable, "tar");
        must(CALL1(fchdir, readable), "tar");
        *entry_name = 0;
        if (*given)
            must(append(append(entry_name, entry_name + LONG_NAME, given), entry_name + LONG_NAME, "/") ? 0 : -ENAMETOOLONG, "tar");
        emit_header(".", *given ? entry_name : "./", "", &status, 0, '5', flags);
        walk(readable, length_of(entry_name), 0, flags, list, end);
    } else {
        i64 parent = open_parent_below(own_root, path, &name);
        must(parent, "tar");
        must(CALL1(fchdir, parent), "tar");
        append(entry_name, entry_name + LONG_NAME, *given ? given : name);
        emit_entry(name, length_of(entry_name), 0, flags, list, end);
    }
    emit(zeros, sizeof zeros);
    flush();
}

/* What stat(2) says, and where a symlink leads. */
static void stat_out(u32 flags, const char *path)
{
    struct { u32 mode, uid, gid; u64 size; i64 modified; } __attribute__((packed)) said;
    struct statx status;
    i64 length, here = open_below(own_root, path, O_PATH | (flags & FOLLOW ? 0 : O_NOFOLLOW), 0);
    failed(here, "stat", path);
    must(here, "stat");
    must(status_of(here, &status), "stat");
    said.mode = status.mode, said.uid = status.uid, said.gid = status.gid, said.size = status.size, said.modified = status.modified.seconds;
    emit(&said, sizeof said);
    if ((status.mode & S_IFMT) == S_IFLNK) {
        static char target[4096];
        length = CALL4(readlinkat, here, "", target, sizeof target);
        must(length, "stat");
        emit(target, (u64)length);
    }
    flush();
}

static void take(void *to, u64 size)
{
    u8 *at = to;
    while (size) {
        i64 got = CALL3(read, 0, at, size);
        if (got == -EINTR)
            continue;
        must(got, "read");
        must(got ? 0 : -EBADMSG, "tar: it ends too early");
        at += got;
        size -= (u64)got;
    }
}

static void skip(u64 size)
{
    while (size) {
        u64 part = size < BUFFER_SIZE ? size : BUFFER_SIZE;
        take(outgoing, part);
        size -= part;
    }
}

static u64 padded(u64 size)
{
    return (size + BLOCK - 1) & ~(u64)(BLOCK - 1);
}

/* A header's number: octal, or base 256 as GNU writes what is too large for that. */
static u64 field_number(const u8 *field, u32 width)
{
    u64 value = 0;
    u32 at = 0;
    if (field[0] & 0x80) {
        must(width > 8 && (field[0] != 0x80 || field[1] || field[2] || field[3]) ? -EBADMSG : 0, "tar: a number");
        for (at = width > 8 ? width - 8 : 1; at < width; at++)
            value = value << 8 | field[at];
        return value;
    }
    while (at < width && field[at] == ' ')
        at++;
    for (; at < width && field[at] >= '0' && field[at] <= '7'; at++)
        value = value << 3 | (u64)(field[at] - '0');
    must(at < width && field[at] && field[at] != ' ' ? -EBADMSG : 0, "tar: a number");
    return value;
}

struct entry { u64 size, uid, gid, mode, major, minor; i64 seconds; u32 nanoseconds; int has_size, has_uid, has_gid, has_time; char type; };

static int key_is(const char *key, u64 length, const char *name)
{
    return length_of(name) == length && begins(key, name);
}

static void copy_name(char *to, const char *from, u64 size)
{
    must(size + 1 > LONG_NAME ? -ENAMETOOLONG : 0, "tar: a name");
    for (u64 i = 0; i < size; i++)
        must(from[i] ? 0 : -EBADMSG, "tar: a name with NUL");
    memcpy(to, from, size);
    to[size] = 0;
}

static u64 record_number(const char *value, u64 size)
{
    u64 number = 0;
    for (u64 i = 0; i < size && value[i] != '.'; i++) {
        must(value[i] < '0' || value[i] > '9' || number > ~0ul / 16 ? -EBADMSG : 0, "tar: a number");
        number = number * 10 + (u64)(value[i] - '0');
    }
    return number;
}

static void take_time(struct entry *entry, const char *value, u64 size)
{
    u64 i = 0, scale = 100000000;
    int negative = size && *value == '-';
    if (negative)
        return;
    entry->seconds = (i64)record_number(value, size);
    while (i < size && value[i] != '.')
        i++;
    for (i++; i < size && scale && value[i] >= '0' && value[i] <= '9'; i++, scale /= 10)
        entry->nanoseconds += (u32)((u64)(value[i] - '0') * scale);
    entry->has_time = 1;
}

/* The records of a pax header; extended attributes stay in `records` until the file is there. */
static void take_records(struct entry *entry, u64 size)
{
    must(size > RECORDS_SIZE ? -E2BIG : 0, "tar: a header");
    take(records, size);
    skip(padded(size) - size);
    records_size = size;
    for (u64 at = 0; at < size;) {
        u64 length = 0, start = at, key;
        while (at < size && records[at] >= '0' && records[at] <= '9' && length < RECORDS_SIZE)
            length = length * 10 + (u64)(records[at++] - '0');
        must(at >= size || records[at] != ' ' || length < at - start + 3 || length > size - start || records[start + length - 1] != '\n' ? -EBADMSG : 0,
             "tar: a header");
        key = ++at;
        while (at < start + length && records[at] != '=')
            at++;
        must(at >= start + length ? -EBADMSG : 0, "tar: a header");
        {
            const char *value = records + at + 1;
            u64 value_size = start + length - 1 - (at + 1);
            if (key_is(records + key, at - key, "path"))
                copy_name(entry_name, value, value_size);
            else if (key_is(records + key, at - key, "linkpath"))
                copy_name(link_name, value, value_size);
            else if (key_is(records + key, at - key, "size"))
                entry->size = record_number(value, value_size), entry->has_size = 1;
            else if (key_is(records + key, at - key, "uid"))
                entry->uid = record_number(value, value_size), entry->has_uid = 1;
            else if (key_is(records + key, at - key, "gid"))
                entry->gid = record_number(value, value_size), entry->has_gid = 1;
            else if (key_is(records + key, at - key, "mtime"))
                take_time(entry, value, value_size);
        }
        at = start + length;
    }
}

/* SCHILY.xattr.* of the records that were just read and checked. */
static void set_attributes(i64 file, u32 flags)
{
    for (u64 at = 0; at < records_size;) {
        u64 length = 0, start = at, key, prefix = 13;
        while (records[at] != ' ')
            length = length * 10 + (u64)(records[at++] - '0');
        key = ++at;
        while (records[at] != '=')
            at++;
        if (at - key > prefix && at - key - prefix < 256 && begins(records + key, "SCHILY.xattr.")) {
            char name[256];
            memcpy(name, records + key + prefix, at - key - prefix);
            name[at - key - prefix] = 0;
            if (kept_attribute(name, flags)) {
                i64 result = CALL(fsetxattr, file, name, records + at + 1, start + length - 1 - (at + 1), 0, 0);
                failed(result == -EOPNOTSUPP ? 0 : result, "attribute", name);
                must(result == -EOPNOTSUPP ? 0 : result, "attribute");
            }
        }
        at = start + length;
    }
}

static void take_long_name(char *to, u64 size)
{
    must(size >= LONG_NAME || !size ? -ENAMETOOLONG : 0, "tar: a name");
    take(to, size);
    to[size] = 0;
    skip(padded(size) - size);
}

/* The next entry; 0 at the end of the archive. */
static int next_entry(struct entry *entry)
{
    memset(entry, 0, sizeof *entry);
    *entry_name = *link_name = 0;
    records_size = 0;
    for (;;) {
        u64 size, sum = 0;
        take(block, BLOCK);
        for (int i = 0; i < BLOCK; i++)
            sum += i >= 148 && i < 156 ? ' ' : block[i];
        if (sum == 8 * ' ')
            return 0;
        must(field_number(block + 148, 8) == sum ? 0 : -EBADMSG, "tar: a checksum");
        size = field_number(block + 124, 12);
        entry->type = (char)block[156];
        if (entry->type == 'x')
            take_records(entry, size);
        else if (entry->type == 'L')
            take_long_name(entry_name, size);
        else if (entry->type == 'K')
            take_long_name(link_name, size);
        else if (entry->type == 'g') {
            must(size > RECORDS_SIZE ? -E2BIG : 0, "tar: a header");
            skip(padded(size));
        } else {
            if (!entry->has_size)
                entry->size = size;
            must(entry->size > ~0ul / 4 ? -EFBIG : 0, "tar: a size");
            break;
        }
    }
    if (!*entry_name) {
        u64 at = 0;
        if (begins((char *)block + 257, "ustar") && !block[262] && block[345]) {
            while (at < 155 && block[345 + at]) {
                entry_name[at] = (char)block[345 + at];
                at++;
            }
            entry_name[at++] = '/';
        }
        for (int i = 0; i < 100 && block[i]; i++)
            entry_name[at++] = (char)block[i];
        entry_name[at] = 0;
    }
    if (!*link_name) {
        memcpy(link_name, block + 157, 100);
        link_name[100] = 0;
    }
    entry->mode = field_number(block + 100, 8) & 07777;
    if (!entry->has_uid)
        entry->uid = field_number(block + 108, 8);
    if (!entry->has_gid)
        entry->gid = field_number(block + 116, 8);
    if (!entry->has_time)
        entry->seconds = (i64)field_number(block + 136, 12);
    entry->major = field_number(block + 329, 8);
    entry->minor = field_number(block + 337, 8);
    return 1;
}

/* Names that climb are refused, not repaired. */
static void check_name(const char *name)
{
    const char *part = name;
    for (;; name++)
        if (!*name || *name == '/') {
            if (name - part == 2 && part[0] == '.' && part[1] == '.') {
                failed(-EINVAL, "tar: a name that climbs:", entry_name);
                must(-EINVAL, "tar");
            }
            if (!*name)
                return;
            part = name + 1;
        }
}

static void remember_time(const struct entry *entry, u64 count)
{
    if (count >= LINK_SLOTS || !(remembered[count].name = remember_name(entry_name)))
        return;
    remembered[count].time = entry->seconds;
    remembered[count].nanoseconds = entry->nanoseconds;
}

static void set_times(i64 directory, const char *name, const struct entry *entry)
{
    i64 times[4] = {entry->seconds, entry->nanoseconds, entry->seconds, entry->nanoseconds};
    CALL4(utimensat, directory, name, times, name ? AT_SYMLINK_NOFOLLOW : 0);
}

/* Whatever has a name already goes, unless it is a directory. */
static i64 make_place(i64 parent, const char *name)
{
    i64 result = CALL3(unlinkat, parent, name, 0);
    return result == -ENOENT ? 0 : result;
}

static i64 extract_directory(i64 parent, const char *name, const struct entry *entry, u32 flags)
{
    i64 result = CALL3(mkdirat, parent, name, 0700), directory;
    if (result < 0 && result != -EEXIST)
        return result;
    directory = CALL4(openat, parent, name, O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
    if (directory < 0)
        return directory;
    result = CALL3(fchown, directory, entry->uid, entry->gid);
    if (result >= 0)
        result = CALL2(fchmod, directory, entry->mode);
    if (result >= 0)
        set_attributes(directory, flags);
    CALL1(close, directory);
    return result;
}

static i64 extract_file(i64 parent, const char *name, const struct entry *entry, u32 flags)
{
    u64 left = entry->size;
    i64 result, file = make_place(parent, name);
    int nameless = 0;
    if (file == -EBUSY) /* something is mounted there, and gets the content */
        file = CALL4(openat, parent, name, O_WRONLY | O_TRUNC | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0);
    else if (file >= 0) {
        /* Without a name until it is whole: this process may be killed. Naming it so takes a right that a machine's agent has. open(2) O_TMPFILE */
        file = dies_with_agent ? -EOPNOTSUPP : CALL4(openat, parent, ".", O_WRONLY | O_TMPFILE | O_CLOEXEC, 0600);
        nameless = file >= 0;
        if (!nameless)
            file = CALL4(openat, parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    }
    if (file < 0)
        return file;
    while (left) {
        u64 part = left < BUFFER_SIZE ? left : BUFFER_SIZE;
        i64 got = CALL3(read, 0, outgoing, part);
        if (got == -EINTR)
            continue;
        must(got, "read");
        must(got ? 0 : -EBADMSG, "tar: it ends too early");
        result = write_all(file, outgoing, (u64)got);
        if (result < 0)
            return result;
        left -= (u64)got;
    }
    skip(padded(entry->size) - entry->size);
    result = CALL3(fchown, file, entry->uid, entry->gid);
    if (result >= 0)
        result = CALL2(fchmod, file, entry->mode);
    if (result >= 0) {
        set_attributes(file, flags);
        set_times(file, 0, entry);
        if (nameless)
            result = CALL(linkat, file, "", parent, name, AT_EMPTY_PATH, 0);
    }
    CALL1(close, file);
    return result;
}

static i64 extract_other(i64 target, i64 parent, const char *name, const struct entry *entry)
{
    static const char kinds[] = {'3', '4', '6'};
    static const u32 modes[] = {S_IFCHR, S_IFBLK, S_IFIFO};
    const char *old;
    i64 from, result = make_place(parent, name);
    if (result < 0)
        return result;
    if (entry->type == '1') {
        check_name(link_name);
        from = open_parent_below(target, link_name, &old);
        if (from < 0)
            return from;
        result = CALL(linkat, from, old, parent, name, 0, 0);
        CALL1(close, from);
        return result;
    }
    if (entry->type == '2')
        result = CALL3(symlinkat, link_name, parent, name);
    else {
        u64 device = (entry->minor & 0xff) | (entry->major & 0xfff) << 8 | (entry->minor & ~0xfful) << 12;
        result = -EINVAL;
        for (int i = 0; i < 3; i++)
            if (entry->type == kinds[i])
                result = CALL4(mknodat, parent, name, modes[i] | entry->mode, entry->type == '6' ? 0 : device);
    }
    if (result >= 0)
        result = CALL(fchownat, parent, name, entry->uid, entry->gid, AT_SYMLINK_NOFOLLOW, 0);
    if (result >= 0)
        set_times(parent, name, entry);
    return result;
}

/* Parents are resolved from the target's descriptor, and no link on the way is followed: who made it in the container does not say where files go. */
static void tar_in(u32 flags, const char *path)
{
    struct entry entry;
    u64 directories = 0;
    i64 target = open_below(own_root, path, O_PATH | O_DIRECTORY, 0);
    failed(target, "tar", path);
    must(target, "tar");
    prepare_memory();
    CALL1(umask, 0);
    resolve_scope = RESOLVE_NO_SYMLINKS;
    while (next_entry(&entry)) {
        const char *name;
        int plain = entry.type == '0' || !entry.type || entry.type == '7';
        u64 length = length_of(entry_name);
        i64 parent, result;
        check_name(entry_name);
        if (!(flags & KEEP_OWNER))
            entry.uid = entry.gid = 0;
        while (length && entry_name[length - 1] == '/')
            entry_name[--length] = 0;
        if (!length || same(entry_name, ".")) {
            result = entry.type == '5' ? 0 : -EINVAL; /* the target itself stays as it is */
        } else {
            parent = open_parent_below(target, entry_name, &name);
            if (parent == -ENOENT) { /* an archive need not name the directories above a file */
                u64 cut = length;
                while (cut && entry_name[cut - 1] != '/')
                    cut--;
                entry_name[cut ? cut - 1 : 0] = 0;
                parent = make_directories_below(target, entry_name, 0755);
                if (cut)
                    entry_name[cut - 1] = '/';
                name = entry_name + cut;
            }
            if (parent < 0)
                result = parent;
            else {
                result = plain ? extract_file(parent, name, &entry, flags)
                    : entry.type == '5' ? extract_directory(parent, name, &entry, flags) : extract_other(target, parent, name, &entry);
                CALL1(close, parent);
            }
        }
        failed(result, "tar:", entry_name);
        must(result, "tar");
        if (!plain)
            skip(padded(entry.type == '1' ? 0 : entry.size));
        if (entry.type == '5' && length)
            remember_time(&entry, directories++);
    }
    while (directories--) {
        struct entry time = {.seconds = remembered[directories % LINK_SLOTS].time, .nanoseconds = remembered[directories % LINK_SLOTS].nanoseconds};
        i64 directory;
        if (directories >= LINK_SLOTS || !remembered[directories].name)
            continue;
        directory = open_below(target, names + remembered[directories].name, O_DIRECTORY | O_NOFOLLOW, 0);
        if (directory >= 0) {
            set_times(directory, 0, &time);
            CALL1(close, directory);
        }
    }
    while (CALL3(read, 0, outgoing, BUFFER_SIZE) > 0)
        ; /* what a program put behind the end */
}

static void read_out(u64 most, const char *path)
{
    struct statx status;
    i64 got, file = open_below(own_root, path, O_NONBLOCK | O_NOCTTY, 0);
    failed(file, "read", path);
    must(file, "read");
    must(status_of(file, &status), "read");
    must((status.mode & S_IFMT) == S_IFDIR ? -EISDIR : (status.mode & S_IFMT) != S_IFREG ? -EINVAL : 0, "read");
    while (most && (got = CALL3(read, file, outgoing, most < BUFFER_SIZE ? most : BUFFER_SIZE)) != 0) {
        if (got == -EINTR)
            continue;
        must(got, "read");
        must(write_all(1, outgoing, (u64)got), "write");
        most -= (u64)got;
    }
}

static void list_out(const char *path)
{
    u8 entries[8192] __attribute__((aligned(8)));
    i64 size, directory = open_below(own_root, path, O_DIRECTORY, 0);
    failed(directory, "list", path);
    must(directory, "list");
    while ((size = CALL3(getdents64, directory, entries, sizeof entries)) > 0)
        for (i64 at = 0; at < size;) {
            const char *name = (const char *)entries + at + 19;
            at += entries[at + 16] | entries[at + 17] << 8;
            if (!same(name, ".") && !same(name, ".."))
                emit(name, length_of(name) + 1);
        }
    must(size, "list");
    flush();
}

#endif
