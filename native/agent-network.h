/* Interfaces of the guest: flags by ioctl(2), addresses and routes by rtnetlink(7). IPv4 and IPv6. */
#ifndef BULLE_AGENT_NETWORK_H
#define BULLE_AGENT_NETWORK_H

#include "agent-places.h"

enum { AF_INET = 2, AF_INET6 = 10, AF_NETLINK = 16, SOCK_DGRAM = 2, SOCK_RAW = 3 };
enum { SIOCGIFFLAGS = 0x8913, SIOCSIFFLAGS = 0x8914, SIOCSIFMTU = 0x8922, SIOCSIFNAME = 0x8923, SIOCSIFHWADDR = 0x8924, SIOCGIFINDEX = 0x8933, IFF_UP = 1, ARPHRD_ETHER = 1 };
enum { RTM_NEWADDR = 20, RTM_DELADDR = 21, RTM_NEWROUTE = 24, NLMSG_ERROR = 2, NLM_F_REQUEST = 1, NLM_F_ACK = 4, NLM_F_REPLACE = 0x100, NLM_F_CREATE = 0x400 };
enum { IFA_ADDRESS = 1, IFA_LOCAL = 2, IFA_F_NODAD = 2, RTA_OIF = 4, RTA_GATEWAY = 5, RT_TABLE_MAIN = 254, RTPROT_BOOT = 3, RTN_UNICAST = 1 };

struct interface_request { char name[16]; union { short flags; int number; char name[16]; struct { unsigned short family; u8 address[14]; } hardware; u8 room[24]; } u; };
struct netlink_message {
    u32 length; unsigned short type, flags; u32 sequence, port;
    u8 body[128];
};

static int name_interface(struct interface_request *request, const char *name)
{
    memset(request, 0, sizeof *request);
    return append(request->name, request->name + sizeof request->name, name) != 0 && *name;
}

static int hexadecimal(char digit)
{
    return digit >= '0' && digit <= '9' ? digit - '0' : digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : digit >= 'A' && digit <= 'F' ? digit - 'A' + 10 : -1;
}

/* An address; returns its length, 4 or 16, or 0. */
static u64 parse_address(const char *text, u8 *address)
{
    u8 groups[16] = {0};
    int place = 0, gap = -1;
    for (const char *c = text; *c && *c != '.'; c++)
        if (*c == ':')
            goto six;
    for (int part = 0; part < 4; part++) {
        u32 value = 0, digits = 0;
        for (; *text >= '0' && *text <= '9' && digits < 4; text++, digits++)
            value = value * 10 + (u32)(*text - '0');
        if (!digits || value > 255 || *text++ != (part < 3 ? '.' : 0))
            return 0;
        address[part] = (u8)value;
    }
    return 4;
six:
    if (text[0] == ':' && text[1] != ':')
        return 0;
    while (*text) {
        u32 value = 0, digits = 0;
        if (*text == ':' && text[1] == ':' && gap < 0) {
            gap = place;
            text += 2;
            continue;
        }
        if (*text == ':' && place && gap != place)
            text++;
        for (; hexadecimal(*text) >= 0 && digits < 4; text++, digits++)
            value = value << 4 | (u32)hexadecimal(*text);
        if (!digits || place >= 16 || (*text && *text != ':'))
            return 0;
        groups[place++] = (u8)(value >> 8);
        groups[place++] = (u8)value;
    }
    if (gap < 0 ? place != 16 : place > 14)
        return 0;
    memset(address, 0, 16);
    for (int i = 0; i < place; i++)
        address[gap >= 0 && i >= gap ? 16 - place + i : i] = groups[i];
    return 16;
}

static void attribute(struct netlink_message *message, unsigned short type, const void *data, u64 size)
{
    unsigned short header[2] = {(unsigned short)(size + 4), type};
    u8 *at = (u8 *)message + message->length;
    memcpy(at, header, 4);
    memcpy(at + 4, data, size);
    message->length += (u32)((size + 4 + 3) & ~3ul);
}

static i64 ask_kernel(struct netlink_message *message)
{
    struct { u32 length; unsigned short type, flags; u32 sequence, port; int error; u8 rest[256]; } answer;
    i64 got, line = CALL3(socket, AF_NETLINK, SOCK_RAW | O_CLOEXEC, 0);
    if (line < 0)
        return line;
    message->flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    got = CALL(sendto, line, message, message->length, 0, 0, 0);
    if (got >= 0)
        got = CALL(recvfrom, line, &answer, sizeof answer, 0, 0, 0);
    CALL1(close, line);
    if (got < 0)
        return got;
    return answer.type == NLMSG_ERROR ? answer.error : -EPROTO;
}

static i64 interface_call(u64 number, struct interface_request *request)
{
    i64 result, line = CALL3(socket, AF_INET, SOCK_DGRAM | O_CLOEXEC, 0);
    if (line < 0)
        return line;
    result = CALL3(ioctl, line, number, request);
    CALL1(close, line);
    return result;
}

static i64 interface_number(const char *name)
{
    struct interface_request request;
    i64 result;
    if (!name_interface(&request, name))
        return -EINVAL;
    result = interface_call(SIOCGIFINDEX, &request);
    return result < 0 ? result : request.u.number;
}

/* address IFACE ADDRESS/LENGTH [remove] */
static i64 change_address(unsigned short type, const char *interface, const char *text)
{
    struct netlink_message message = {16 + 8, type, 0, 1, 0, {0}};
    char name[64], *end = name;
    u8 address[16];
    u64 length, prefix;
    i64 number = interface_number(interface);
    if (number < 0)
        return number;
    while (*text && *text != '/' && end < name + sizeof name - 1)
        *end++ = *text++;
    *end = 0;
    length = parse_address(name, address);
    if (!length || *text != '/' || !number_of(text + 1, 10, &prefix) || prefix > length * 8)
        return -EINVAL;
    message.body[0] = length == 4 ? AF_INET : AF_INET6;
    message.body[1] = (u8)prefix;
    message.body[2] = length == 16 ? IFA_F_NODAD : 0; /* nobody else has it: usable at once */
    memcpy(message.body + 4, &(u32){(u32)number}, 4);
    attribute(&message, IFA_LOCAL, address, length);
    attribute(&message, IFA_ADDRESS, address, length);
    return ask_kernel(&message);
}

/* route IFACE GATEWAY: the default one */
static i64 add_route(const char *interface, const char *text)
{
    struct netlink_message message = {16 + 12, RTM_NEWROUTE, 0, 1, 0, {0}};
    u8 address[16];
    u64 length = parse_address(text, address);
    i64 number = interface_number(interface);
    if (number < 0)
        return number;
    if (!length)
        return -EINVAL;
    message.body[0] = length == 4 ? AF_INET : AF_INET6;
    message.body[4] = RT_TABLE_MAIN;
    message.body[5] = RTPROT_BOOT;
    message.body[7] = RTN_UNICAST;
    attribute(&message, RTA_GATEWAY, address, length);
    attribute(&message, RTA_OIF, &(u32){(u32)number}, 4);
    return ask_kernel(&message);
}

/* link IFACE up | down | mtu N | mac M */
static i64 change_link(char **words, int count)
{
    struct interface_request request;
    u64 number;
    i64 result;
    if (!name_interface(&request, words[0]))
        return -EINVAL;
    if (count == 2 && (same(words[1], "up") || same(words[1], "down"))) {
        result = interface_call(SIOCGIFFLAGS, &request);
        if (result < 0)
            return result;
        request.u.flags = (short)(same(words[1], "up") ? request.u.flags | IFF_UP : request.u.flags & ~IFF_UP);
        return interface_call(SIOCSIFFLAGS, &request);
    }
    if (count == 3 && same(words[1], "mtu") && number_of(words[2], 10, &number) && number <= 65536) {
        request.u.number = (int)number;
        return interface_call(SIOCSIFMTU, &request);
    }
    if (count == 3 && same(words[1], "name") && length_of(words[2]) < 16) {
        memcpy(request.u.name, words[2], length_of(words[2]) + 1);
        return interface_call(SIOCSIFNAME, &request);
    }
    if (count == 3 && same(words[1], "mac") && length_of(words[2]) == 17) {
        request.u.hardware.family = ARPHRD_ETHER;
        for (int i = 0; i < 6; i++) {
            int high = hexadecimal(words[2][3 * i]), low = hexadecimal(words[2][3 * i + 1]);
            if (high < 0 || low < 0)
                return -EINVAL;
            request.u.hardware.address[i] = (u8)(high << 4 | low);
        }
        return interface_call(SIOCSIFHWADDR, &request);
    }
    return -EINVAL;
}

#endif
