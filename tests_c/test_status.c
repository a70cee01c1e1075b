/* test_status.c — floor 0: every status has a sentence of its own. */
#include <limits.h>
#include <string.h>

#include <ringbuf/ringbuf.h>
#include <unity.h>

enum { FIRST = RINGBUF_OK, LAST = RINGBUF_E_DEAD_LETTER };

void setUp(void) {}
void tearDown(void) {}

static void test_every_status_has_a_sentence_and_no_two_share_it(void)
{
    for (ringbuf_status s = FIRST; s <= LAST; s++) {
        const char *sentence = ringbuf_status_text(s);
        TEST_ASSERT_NOT_NULL(sentence);
        TEST_ASSERT_GREATER_THAN_INT(3, (int)strlen(sentence));
        for (ringbuf_status other = FIRST; other < s; other++)
            TEST_ASSERT_TRUE_MESSAGE(strcmp(sentence, ringbuf_status_text(other)) != 0, sentence);
    }
}

static void test_a_number_that_is_no_status_has_a_sentence_that_is_no_status_s(void)
{
    static const ringbuf_status strangers[] = {FIRST - 1, LAST + 1, INT32_MIN, INT32_MAX};
    for (size_t i = 0; i < sizeof strangers / sizeof *strangers; i++) {
        const char *sentence = ringbuf_status_text(strangers[i]);
        TEST_ASSERT_NOT_NULL(sentence);
        TEST_ASSERT_GREATER_THAN_INT(3, (int)strlen(sentence));
        for (ringbuf_status known = FIRST; known <= LAST; known++)
            TEST_ASSERT_TRUE_MESSAGE(strcmp(sentence, ringbuf_status_text(known)) != 0, sentence);
    }
}

static void test_the_version_is_the_one_the_project_was_built_as(void)
{
    TEST_ASSERT_EQUAL_STRING(RINGBUF_VERSION_STRING, ringbuf_version());
}

int main(void)
{
    UNITY_BEGIN();
    RUN_TEST(test_every_status_has_a_sentence_and_no_two_share_it);
    RUN_TEST(test_a_number_that_is_no_status_has_a_sentence_that_is_no_status_s);
    RUN_TEST(test_the_version_is_the_one_the_project_was_built_as);
    return UNITY_END();
}
