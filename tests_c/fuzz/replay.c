/* replay.c — runs a fuzz target on the files given, or on all files of the directories given, without libFuzzer.
 *
 *   replay_TARGET PATH...     exits with 0 if nothing was found; a finding ends it by a signal, after the name of its file */
#include <dirent.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *count, char ***arguments);

enum { LONGEST_S = 60 }; /* a watchdog: an input takes less than a millisecond */

static char running[4096];

/** Of the sanitizers; not there without them. */
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

static void tell_which(void)
{
    static const char before[] = "while running the input ", behind[] = "\n";
    ssize_t written = write(2, before, sizeof before - 1);
    if (written >= 0) written = write(2, running, strlen(running));
    if (written >= 0) written = write(2, behind, 1);
}

static void on_signal(int signal)
{
    tell_which();
    raise(signal); /* the handler has been taken away */
}

static int run_file(const char *path)
{
    snprintf(running, sizeof running, "%s", path);
    FILE *file = fopen(path, "rb");
    if (!file) {
        perror(path);
        exit(2);
    }
    static uint8_t bytes[1 << 20];
    size_t size = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    /* A copy of just that size, so that reading beyond it is noticed. */
    uint8_t *data = malloc(size ? size : 1);
    if (!data) abort();
    memcpy(data, bytes, size);
    alarm(LONGEST_S);
    LLVMFuzzerTestOneInput(data, size);
    alarm(0);
    free(data);
    return 1;
}

static int run_path(const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode)) return run_file(path);
    struct dirent **entries;
    int found = scandir(path, &entries, NULL, alphasort), run = 0;
    for (int i = 0; i < found; i++) {
        char inside[4096];
        snprintf(inside, sizeof inside, "%s/%s", path, entries[i]->d_name);
        if (entries[i]->d_name[0] != '.') run += run_file(inside);
        free(entries[i]);
    }
    if (found >= 0) free(entries);
    return run;
}

int main(int count, char **arguments)
{
    const int signals[] = {SIGABRT, SIGALRM, SIGSEGV, SIGBUS};
    const size_t ours = __sanitizer_set_death_callback ? 2 : sizeof signals / sizeof *signals; /* it has its own for the others */
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    for (size_t i = 0; i < ours; i++) sigaction(signals[i], &action, NULL);
    if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(tell_which);
    LLVMFuzzerInitialize(&count, &arguments);
    int run = 0;
    for (int i = 1; i < count; i++) run += run_path(arguments[i]);
    printf("%d inputs\n", run);
    return run ? 0 : 2;
}
