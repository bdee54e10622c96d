package layering

import (
	"encoding/binary"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// forbidden are the system calls that no package needs and a hostile one could
// want. Most of them fail without the capabilities anyway; the filter keeps the
// kernel's code for them out of reach.
var forbidden = []uint32{
	unix.SYS_ACCT, unix.SYS_ADD_KEY, unix.SYS_ADJTIMEX, unix.SYS_BPF, unix.SYS_CLOCK_ADJTIME,
	unix.SYS_CLOCK_SETTIME, unix.SYS_DELETE_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_FSCONFIG,
	unix.SYS_FSMOUNT, unix.SYS_FSOPEN, unix.SYS_FSPICK, unix.SYS_INIT_MODULE, unix.SYS_IO_URING_SETUP,
	unix.SYS_KEXEC_LOAD, unix.SYS_KEYCTL, unix.SYS_MOUNT, unix.SYS_MOUNT_SETATTR, unix.SYS_MOVE_MOUNT,
	unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_OPEN_TREE, unix.SYS_PERF_EVENT_OPEN, unix.SYS_PIVOT_ROOT,
	unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PTRACE, unix.SYS_QUOTACTL,
	unix.SYS_REBOOT, unix.SYS_REQUEST_KEY, unix.SYS_SETDOMAINNAME, unix.SYS_SETHOSTNAME, unix.SYS_SETNS,
	unix.SYS_SETTIMEOFDAY, unix.SYS_SWAPOFF, unix.SYS_SWAPON, unix.SYS_SYSLOG, unix.SYS_UMOUNT2,
	unix.SYS_UNSHARE, unix.SYS_USERFAULTFD,
}

// Fields of struct seccomp_data and return values of <linux/seccomp.h>.
const (
	seccompNr   = 0
	seccompArch = 4
	seccompArg0 = 16

	seccompAllow = 0x7fff0000
	seccompErrno = 0x00050000
)

const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
	unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// filterProgram is the filter in the kernel's form, struct sock_filter of
// <linux/filter.h>. Forbidden calls fail with EPERM. Programs of another
// architecture than the machine's own (a 32-bit scriptlet) get ENOSYS for every
// call, and so does clone3, whose flags a filter cannot see: C libraries then
// use clone.
func filterProgram() ([]byte, error) {
	prog := []unix.SockFilter{
		load(seccompArch),
		skipIf(unix.BPF_JEQ, auditArch, 1),
		fail(unix.ENOSYS),
		load(seccompNr),
		// x32 has the architecture of x86-64 and this bit.
		skipUnless(unix.BPF_JSET, 0x40000000, 1),
		fail(unix.ENOSYS),
		skipUnless(unix.BPF_JEQ, unix.SYS_CLONE3, 1),
		fail(unix.ENOSYS),
	}
	for _, nr := range forbidden {
		prog = append(prog, skipUnless(unix.BPF_JEQ, nr, 1), fail(unix.EPERM))
	}
	prog = append(
		prog,
		skipUnless(unix.BPF_JEQ, unix.SYS_CLONE, 3),
		load(seccompArg0),
		skipUnless(unix.BPF_JSET, newNamespaces, 1),
		fail(unix.EPERM),
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: seccompAllow},
	)
	return binary.Append(nil, binary.NativeEndian, prog)
}

// load puts a 32-bit field of struct seccomp_data into the accumulator; both
// architectures are little-endian, so the low half of an argument comes first.
func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

func skipIf(cond uint16, k uint32, n uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_K | cond, K: k, Jt: n}
}

func skipUnless(cond uint16, k uint32, n uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_K | cond, K: k, Jf: n}
}

func fail(errno syscall.Errno) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: seccompErrno | uint32(errno)}
}

// filterFile returns the filter as a descriptor to give to bwrap.
func filterFile() (*os.File, error) {
	prog, err := filterProgram()
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("seccomp", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "seccomp")
	if _, err := f.WriteAt(prog, 0); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
