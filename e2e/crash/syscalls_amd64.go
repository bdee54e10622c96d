package crash

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// older are the calls that newer architectures do without.
var older = map[uintptr]syscallInfo{
	unix.SYS_CREAT:   {"creat", byPath},
	unix.SYS_RENAME:  {"rename", byPath},
	unix.SYS_LINK:    {"link", byPath},
	unix.SYS_SYMLINK: {"symlink", byPath},
	unix.SYS_MKDIR:   {"mkdir", byPath},
	unix.SYS_MKNOD:   {"mknod", byPath},
	unix.SYS_UNLINK:  {"unlink", byPath},
	unix.SYS_RMDIR:   {"rmdir", byPath},
	unix.SYS_CHMOD:   {"chmod", byPath},
	unix.SYS_CHOWN:   {"chown", byPath},
	unix.SYS_LCHOWN:  {"lchown", byPath},
	unix.SYS_UTIMES:  {"utimes", byPath},
}

// skip makes the system call that tid is about to make fail with errno.
func skip(tid int, errno syscall.Errno) error {
	var r unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &r); err != nil {
		return err
	}
	r.Orig_rax = ^uint64(0)
	r.Rax = uint64(-int64(errno))
	return unix.PtraceSetRegs(tid, &r)
}
