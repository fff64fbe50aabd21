// An engine in small: does one thing after the other, as its arguments say. Needs no library at run time.
//   out TEXT, err TEXT   print a line      exit N        end with N
//   many N               print N numbered lines, to both outputs in turn
//   deaf                 from now on ignore SIGTERM      mild      end with 0 at SIGTERM
//   eat MIB              take so much memory             child     start another one that sleeps
//   env NAME             print its value                 cat PATH  print a file's first line
//   serve                answer 200 on port $HOLDFAST_TEST_PORT, for ever      sleep    for ever
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void end(int number) { (void)number; _exit(0); }

static void serve(void) {
    const char *named = getenv("HOLDFAST_TEST_PORT");
    int yes = 1, listening = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(atoi(named ? named : "0"))};
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listening, (struct sockaddr *)&here, sizeof here) || listen(listening, 16)) { perror("bind"); exit(1); }
    for (;;) {
        char request[4096];
        int one = accept(listening, 0, 0);
        if (read(one, request, sizeof request) > 0)
            dprintf(one, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}");
        close(one);
    }
}

int main(int count, char **words) {
    setvbuf(stdout, 0, _IOLBF, 0);
    for (int i = 1; i < count; i++) {
        const char *word = words[i];
        if (!strcmp(word, "out")) printf("%s\n", words[++i]);
        else if (!strcmp(word, "err")) fprintf(stderr, "%s\n", words[++i]);
        else if (!strcmp(word, "exit")) exit(atoi(words[++i]));
        else if (!strcmp(word, "deaf")) signal(SIGTERM, SIG_IGN);
        else if (!strcmp(word, "mild")) signal(SIGTERM, end);
        else if (!strcmp(word, "env")) { const char *v = getenv(words[++i]); printf("%s\n", v ? v : "(unset)"); }
        else if (!strcmp(word, "child")) { if (!fork()) for (;;) pause(); }
        else if (!strcmp(word, "serve")) serve();
        else if (!strcmp(word, "sleep")) for (;;) pause();
        else if (!strcmp(word, "eat")) { size_t n = (size_t)atol(words[++i]) << 20; memset(malloc(n), 1, n); }
        else if (!strcmp(word, "cat")) {
            char line[4096] = "";
            FILE *file = fopen(words[++i], "r");
            if (!file || !fgets(line, sizeof line, file)) { perror(words[i]); exit(1); }
            printf("%s", line);
        }
        else if (!strcmp(word, "many")) {
            long n = atol(words[++i]);
            for (long k = 0; k < n; k++) {
                char line[32];
                int length = snprintf(line, sizeof line, "line %ld\n", k);
                if (write(1 + k % 2, line, length) != length) exit(1);
            }
        }
        else { fprintf(stderr, "cannot %s\n", word); exit(2); }
    }
    return 0;
}
