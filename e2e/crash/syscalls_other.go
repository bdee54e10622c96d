//go:build !amd64

package crash

import (
	"errors"
	"syscall"
)

// older are the calls that newer architectures do without.
var older map[uintptr]syscallInfo

// skip makes the system call that tid is about to make fail with errno.
func skip(int, syscall.Errno) error { return errors.ErrUnsupported }
