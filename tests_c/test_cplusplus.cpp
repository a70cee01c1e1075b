// The public header is valid C++, and its functions link under their C names.
#include <ringbuf/ringbuf.h>

int main()
{
    ringbuf_options options;
    ringbuf_options_init(&options);
    return ringbuf_status_text(RINGBUF_OK) != nullptr && options.mode == RINGBUF_OPEN_OR_CREATE ? 0 : 1;
}
