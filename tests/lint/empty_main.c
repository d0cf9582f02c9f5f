/* SPDX-License-Identifier: MIT
 *
 * empty_main.c: linked with the whole of one layer and with the layers it may use, nothing else. That it links is
 * the test: an upward call ends in "undefined reference". Running it proves that start-up code does no harm.
 */
int main(void);

int main(void)
{
    return 0;
}
