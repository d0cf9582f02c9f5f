/* SPDX-License-Identifier: MIT
 *
 * test.h: cmocka with the headers that it wants in front of it. For unit tests only.
 */
#ifndef BASE_TEST_H
#define BASE_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#endif
