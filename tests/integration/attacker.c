/* What a hostile program in a container tries. Built static by test_attacks.py, mounted into the container.

   watch SECONDS: looks at every other process through /proc and ptrace, as fast as it can, for the engine's interpreter, environment and descriptors
   escape:        the classic way out of chroot(2) by a second one
   exe:           which file this process executes; also as the dynamic loader of another program */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void look(const char *pid)
{
    char path[300], text[4096];
    ssize_t length;
    snprintf(path, sizeof path, "/proc/%s/exe", pid);
    length = readlink(path, text, sizeof text - 1);
    if (length > 0) {
        text[length] = 0;
        if (strstr(text, "python"))
            printf("exe %s\n", text);
    }
    snprintf(path, sizeof path, "/proc/%s/environ", pid);
    int fd = open(path, O_RDONLY);
    if (fd >= 0) {
        length = read(fd, text, sizeof text - 1);
        for (ssize_t i = 0; i + 10 < length; i++)
            if (!memcmp(text + i, "BULLE_HOME", 10)) {
                printf("environ\n");
                break;
            }
        close(fd);
    }
    snprintf(path, sizeof path, "/proc/%s/fd", pid);
    DIR *directory = opendir(path);
    if (directory) {
        struct dirent *entry;
        while ((entry = readdir(directory)))
            if (atoi(entry->d_name) > 2) {
                snprintf(path, sizeof path, "/proc/%s/fd/%s", pid, entry->d_name);
                length = readlink(path, text, sizeof text - 1);
                if (length > 0) {
                    text[length] = 0;
                    printf("fd %s\n", text);
                }
            }
        closedir(directory);
    }
    if (ptrace(PTRACE_SEIZE, atoi(pid), 0, 0) == 0) {
        snprintf(path, sizeof path, "/proc/%s/exe", pid);
        length = readlink(path, text, sizeof text - 1);
        if (length > 0 && (text[length] = 0, strstr(text, "python")))
            printf("traced %s\n", text);
        ptrace(PTRACE_INTERRUPT, atoi(pid), 0, 0);
        waitpid(atoi(pid), NULL, __WALL);
        ptrace(PTRACE_DETACH, atoi(pid), 0, 0);
    }
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc == 3 && !strcmp(argv[1], "watch")) {
        char own[16];
        snprintf(own, sizeof own, "%d", getpid());
        puts("watching");
        for (time_t end = time(NULL) + atoi(argv[2]); time(NULL) < end;) {
            DIR *proc = opendir("/proc");
            struct dirent *entry;
            while (proc && (entry = readdir(proc)))
                if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9' && strcmp(entry->d_name, own) && strcmp(entry->d_name, "1"))
                    look(entry->d_name);
            if (proc)
                closedir(proc);
        }
        puts("watched");
    } else if (argc == 2 && !strcmp(argv[1], "escape")) {
        mkdir("/tmp/inner", 0755);
        if (chroot("/tmp/inner"))
            return 9;
        for (int i = 0; i < 50; i++)
            if (chdir(".."))
                return 8;
        if (chroot("."))
            return 7;
        DIR *root = opendir("/");
        struct dirent *entry;
        while (root && (entry = readdir(root)))
            puts(entry->d_name);
    } else if (argc == 2 && !strcmp(argv[1], "exe")) {
        char text[4096];
        ssize_t length = readlink("/proc/self/exe", text, sizeof text - 1);
        printf("exe %.*s\n", (int)(length > 0 ? length : 0), text);
    } else
        return 2;
    return 0;
}
