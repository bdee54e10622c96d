// Package crash kills kedge at the system calls that change the sysroot, one
// run for each, and shows that every state in between boots and is cleaned up.
//
// The killer is a small ptrace tracer. strace's injection counts the calls of
// each thread by itself, which numbers nothing in a program with many; here one
// counter goes over all threads and child processes, so that kill point N lies
// after exactly N-1 changes. It kills every process of the run at once, as a
// service manager does. It proves cleanup, not durability: what was written
// before the kill is in the page cache and stays.
package crash

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Call is a system call that changes something.
type Call struct {
	Name string
	Path string // of the file descriptor or first path argument, as the caller gave it
}

func (c Call) String() string { return c.Name + " " + c.Path }

// Run is one run of a program under the tracer.
type Run struct {
	Calls  []Call // in the order in which they began; the last one was not done if Killed
	Killed bool
	Failed int    // calls that were made to fail
	Exit   int    // exit status, -1 if killed
	Output string // standard output and standard error
}

const (
	childVariable = "KEDGE_CRASH_CHILD"
	// ptraceGetSyscallInfo is arch-independent: PTRACE_GET_SYSCALL_INFO of ptrace(2).
	ptraceGetSyscallInfo = 0x420e
	// wnothread limits wait4 to the tracees of this thread.
	wnothread = 0x20000000
	traced    = unix.PTRACE_O_EXITKILL | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK |
		unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_TRACESECCOMP
)

// Trace runs argv and kills it when it begins its killAt-th change to a file
// beneath root; with 0 it only counts.
func Trace(root string, killAt int, argv ...string) (Run, error) {
	return start(tracer{root: root, killAt: killAt}, argv)
}

// TraceFull runs argv on a disk that is full from its fullAt-th change on: what
// needs space fails with ENOSPC until something has failed and something was
// removed.
func TraceFull(root string, fullAt int, argv ...string) (Run, error) {
	return start(tracer{root: root, fullAt: fullAt}, argv)
}

func start(t tracer, argv []string) (Run, error) {
	program, err := filepath.EvalSymlinks(argv[0])
	if err != nil {
		return Run{}, err
	}
	out, err := os.CreateTemp("", "crash-output-")
	if err != nil {
		return Run{}, err
	}
	defer out.Close()
	defer os.Remove(out.Name())

	type result struct {
		run Run
		err error
	}
	done := make(chan result)
	go func() {
		// A tracee belongs to the thread that started it. The thread ends
		// with the goroutine, which nobody unlocks.
		runtime.LockOSThread()
		t.processes, t.seen = map[int]bool{}, map[int]bool{}
		err := t.trace(append([]string{program}, argv[1:]...), out)
		done <- result{t.run, err}
	}()
	r := <-done
	if r.err != nil {
		return r.run, fmt.Errorf("trace %s: %w", argv[0], r.err)
	}
	text, err := os.ReadFile(out.Name())
	r.run.Output = string(text)
	return r.run, err
}

type tracer struct {
	root      string
	killAt    int
	fullAt    int
	run       Run
	processes map[int]bool
	seen      map[int]bool // threads whose first stop has passed
	err       error
}

func (t *tracer) trace(argv []string, out *os.File) error {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	pid, err := syscall.ForkExec("/proc/self/exe", argv, &syscall.ProcAttr{
		Env:   append(os.Environ(), childVariable+"=1"),
		Files: []uintptr{null.Fd(), out.Fd(), out.Fd()},
		Sys:   &syscall.SysProcAttr{Ptrace: true, Setpgid: true},
	})
	if err != nil {
		return err
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, unix.WALL, nil); err != nil {
		return err
	}
	if err := unix.PtraceSetOptions(pid, traced); err != nil {
		return errors.Join(err, unix.Kill(pid, unix.SIGKILL))
	}
	t.processes[pid], t.seen[pid] = true, true
	if err := unix.PtraceCont(pid, 0); err != nil {
		return err
	}
	for {
		// The process group: this thread may have other children, of code that
		// ran on it before.
		tid, err := unix.Wait4(-pid, &ws, unix.WALL|wnothread, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ECHILD):
			return t.err
		case err != nil:
			return err
		case ws.Exited() || ws.Signaled():
			delete(t.processes, tid)
			if tid == pid {
				if t.run.Exit = -1; ws.Exited() {
					t.run.Exit = ws.ExitStatus()
				}
			}
		case ws.Stopped():
			t.stopped(tid, ws)
		}
	}
}

// stopped lets a tracee go on, or kills everything. Errors are those of
// tracees that are being killed.
func (t *tracer) stopped(tid int, ws unix.WaitStatus) {
	first := !t.seen[tid]
	t.seen[tid] = true
	signal := 0
	switch {
	case ws.StopSignal() == unix.SIGTRAP && ws.TrapCause() == unix.PTRACE_EVENT_SECCOMP:
		if call, ok := t.change(tid); ok && !t.run.Killed {
			t.run.Calls = append(t.run.Calls, call)
			if len(t.run.Calls) == t.killAt {
				t.run.Killed = true
				for p := range t.processes {
					_ = unix.Kill(p, unix.SIGKILL)
				}
				return
			}
			if t.run.Failed > 0 && givesSpace[call.Name] {
				t.fullAt = 0
			}
			if t.fullAt > 0 && len(t.run.Calls) >= t.fullAt && needsSpace[call.Name] {
				t.run.Failed++
				if err := skip(tid, unix.ENOSPC); err != nil {
					t.err = err
				}
			}
		}
	case ws.StopSignal() == unix.SIGTRAP && (ws.TrapCause() == unix.PTRACE_EVENT_FORK || ws.TrapCause() == unix.PTRACE_EVENT_VFORK):
		if child, err := unix.PtraceGetEventMsg(tid); err == nil {
			t.processes[int(child)] = true
			if t.run.Killed {
				_ = unix.Kill(int(child), unix.SIGKILL)
			}
		}
	case ws.StopSignal() == unix.SIGTRAP && ws.TrapCause() > 0:
	case first && ws.StopSignal() == unix.SIGSTOP:
	default:
		signal = int(ws.StopSignal())
	}
	_ = unix.PtraceCont(tid, signal)
}

// change says whether the system call that tid is about to make changes a file
// beneath the root.
func (t *tracer) change(tid int) (Call, bool) {
	// struct ptrace_syscall_info: op at 0, for PTRACE_SYSCALL_INFO_SECCOMP
	// the number at 24 and six arguments from 32.
	var info [88]byte
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, ptraceGetSyscallInfo, uintptr(tid), uintptr(len(info)), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 {
		return Call{}, false
	}
	word := func(i int) uint64 { return binary.NativeEndian.Uint64(info[24+8*i:]) }
	nr, args := uintptr(word(0)), func(i int) uint64 { return word(1 + i) }
	s, ok := changing[nr]
	if !ok {
		return Call{}, false
	}
	c := Call{Name: s.name}
	switch s.kind {
	case byDescriptor:
		c.Path = descriptor(tid, args(0))
		return c, beneath(t.root, c.Path)
	case byThirdDescriptor:
		c.Path = descriptor(tid, args(2))
		return c, beneath(t.root, c.Path)
	case byPath:
		c.Path = readString(tid, args(0))
	case byPathAt:
		c.Path = t.resolve(tid, args(0), args(1))
	case byPathAtLast:
		c.Path = t.resolve(tid, args(1), args(2))
	case byPathAtNew:
		c.Path = t.resolve(tid, args(2), args(3))
	case opening: // openat(dirfd, path, flags)
		if args(2)&(unix.O_CREAT|unix.O_TRUNC) == 0 && args(2)&unix.O_TMPFILE != unix.O_TMPFILE {
			return c, false
		}
		c.Path = t.resolve(tid, args(0), args(1))
	case openingHow: // openat2(dirfd, path, how)
		flags := binary.NativeEndian.Uint64(append(readMemory(tid, args(2), 8), make([]byte, 8)...))
		if flags&(unix.O_CREAT|unix.O_TRUNC) == 0 && flags&unix.O_TMPFILE != unix.O_TMPFILE {
			return c, false
		}
		c.Path = t.resolve(tid, args(0), args(1))
	case byIoctl:
		if request := args(1); request != unix.FICLONE && request != unix.FS_IOC_SETFLAGS && request != unix.FS_IOC_ENABLE_VERITY {
			return c, false
		}
		c.Path = descriptor(tid, args(0))
	}
	return c, !strings.HasPrefix(c.Path, "/") || beneath(t.root, c.Path) || strings.HasPrefix(c.Path, "/proc/self/fd/")
}

func beneath(root, path string) bool { return path == root || strings.HasPrefix(path, root+"/") }

func descriptor(tid int, fd uint64) string {
	path, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tid, int32(fd)))
	return path
}

// resolve names a path argument as well as it can be without looking it up.
func (t *tracer) resolve(tid int, dirfd, path uint64) string {
	p := readString(tid, path)
	if strings.HasPrefix(p, "/") {
		return p
	}
	link := fmt.Sprintf("/proc/%d/fd/%d", tid, int32(dirfd))
	if int32(dirfd) == unix.AT_FDCWD {
		link = fmt.Sprintf("/proc/%d/cwd", tid)
	}
	dir, err := os.Readlink(link)
	if err != nil {
		return p
	}
	return filepath.Join(dir, p)
}

func readMemory(tid int, address uint64, n int) []byte {
	buf := make([]byte, n)
	got, err := unix.ProcessVMReadv(tid, []unix.Iovec{{Base: &buf[0], Len: uint64(n)}}, []unix.RemoteIovec{{Base: uintptr(address), Len: n}}, 0)
	if err != nil {
		return nil
	}
	return buf[:got]
}

func readString(tid int, address uint64) string {
	const page = 4096
	var s []byte
	for address != 0 && len(s) < page {
		chunk := readMemory(tid, address, int(page-address%page))
		text, _, ended := strings.Cut(string(chunk), "\x00")
		s = append(s, text...)
		if ended || len(chunk) == 0 {
			break
		}
		address += uint64(len(chunk))
	}
	return string(s)
}
