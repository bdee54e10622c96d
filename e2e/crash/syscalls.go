package crash

import (
	"fmt"
	"maps"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// argument says where a system call names the file that it changes.
type argument uint8

const (
	byDescriptor argument = iota
	byPath
	byPathAt
	byPathAtLast // symlinkat(target, dirfd, path)
	byPathAtNew  // linkat(dirfd, path, dirfd, path, flags)
	opening
	openingHow
	byIoctl
	byThirdDescriptor
)

type syscallInfo struct {
	name string
	kind argument
}

// changing are the system calls that change files or mounts. Those that only
// make a change durable are left out: for a killed process they change nothing.
var changing = func() map[uintptr]syscallInfo {
	all := maps.Clone(modern)
	maps.Copy(all, older)
	return all
}()

var modern = map[uintptr]syscallInfo{
	unix.SYS_WRITE:           {"write", byDescriptor},
	unix.SYS_PWRITE64:        {"pwrite64", byDescriptor},
	unix.SYS_WRITEV:          {"writev", byDescriptor},
	unix.SYS_PWRITEV:         {"pwritev", byDescriptor},
	unix.SYS_PWRITEV2:        {"pwritev2", byDescriptor},
	unix.SYS_SENDFILE:        {"sendfile", byDescriptor},
	unix.SYS_FTRUNCATE:       {"ftruncate", byDescriptor},
	unix.SYS_FALLOCATE:       {"fallocate", byDescriptor},
	unix.SYS_FCHMOD:          {"fchmod", byDescriptor},
	unix.SYS_FCHOWN:          {"fchown", byDescriptor},
	unix.SYS_FSETXATTR:       {"fsetxattr", byDescriptor},
	unix.SYS_FREMOVEXATTR:    {"fremovexattr", byDescriptor},
	unix.SYS_TRUNCATE:        {"truncate", byPath},
	unix.SYS_SETXATTR:        {"setxattr", byPath},
	unix.SYS_LSETXATTR:       {"lsetxattr", byPath},
	unix.SYS_REMOVEXATTR:     {"removexattr", byPath},
	unix.SYS_LREMOVEXATTR:    {"lremovexattr", byPath},
	unix.SYS_MOUNT:           {"mount", byPath},
	unix.SYS_UMOUNT2:         {"umount2", byPath},
	unix.SYS_RENAMEAT:        {"renameat", byPathAt},
	unix.SYS_RENAMEAT2:       {"renameat2", byPathAt},
	unix.SYS_LINKAT:          {"linkat", byPathAtNew},
	unix.SYS_SYMLINKAT:       {"symlinkat", byPathAtLast},
	unix.SYS_MKDIRAT:         {"mkdirat", byPathAt},
	unix.SYS_MKNODAT:         {"mknodat", byPathAt},
	unix.SYS_UNLINKAT:        {"unlinkat", byPathAt},
	unix.SYS_FCHMODAT:        {"fchmodat", byPathAt},
	unix.SYS_FCHMODAT2:       {"fchmodat2", byPathAt},
	unix.SYS_FCHOWNAT:        {"fchownat", byPathAt},
	unix.SYS_UTIMENSAT:       {"utimensat", byPathAt},
	unix.SYS_OPENAT:          {"openat", opening},
	unix.SYS_OPENAT2:         {"openat2", openingHow},
	unix.SYS_IOCTL:           {"ioctl", byIoctl},
	unix.SYS_COPY_FILE_RANGE: {"copy_file_range", byThirdDescriptor},
}

// needsSpace are the calls that take space where they succeed.
var needsSpace = map[string]bool{
	"write": true, "pwrite64": true, "writev": true, "pwritev": true, "pwritev2": true, "sendfile": true, "copy_file_range": true, "fallocate": true,
	"openat": true, "openat2": true, "creat": true, "mkdirat": true, "mkdir": true, "mknodat": true, "mknod": true,
	"linkat": true, "link": true, "symlinkat": true, "symlink": true, "renameat": true, "renameat2": true, "rename": true,
	"setxattr": true, "lsetxattr": true, "fsetxattr": true,
}

var givesSpace = map[string]bool{"unlinkat": true, "unlink": true, "rmdir": true}

// init turns the test program into the tracee: it asks for a stop at every
// call of the table, which survives execve, and becomes the program to trace.
func init() {
	if os.Getenv(childVariable) == "" {
		return
	}
	runtime.LockOSThread()
	err := os.Unsetenv(childVariable)
	if err == nil {
		err = filter()
	}
	if err == nil {
		err = syscall.Exec(os.Args[0], os.Args, os.Environ())
	}
	fmt.Fprintln(os.Stderr, "crash: start the program to trace:", err)
	os.Exit(125)
}

// filter stops this thread and all that come from it at the calls of the table.
// They stay in one process group, which is how the tracer waits for them: a
// session or a group of its own is granted and not made.
func filter() error {
	program := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}} // struct seccomp_data.nr
	for nr := range changing {
		program = append(program,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: uint32(nr)},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_TRACE})
	}
	for _, nr := range []uint32{unix.SYS_SETSID, unix.SYS_SETPGID} {
		program = append(program,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: nr},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO})
	}
	program = append(program, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	fprog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&fprog)), 0, 0)
}
