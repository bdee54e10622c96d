package layering

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
)

// box is a sandbox around a root. What runs in it sees the root, an empty /run,
// /tmp, /sys and /boot, a /proc of its own processes and a /dev with the
// standard nodes: nothing of the machine's files, processes and, without net,
// its network. It has the capabilities that unpacking a package takes and no
// more, and a system call filter. It ends with everything it started.
type box struct {
	s        *Session
	root     string
	writable bool // the root; else read-only
	net      bool
	binds    []bind
	env      []string // NAME=VALUE
}

// bind makes a directory or file of the machine visible in a box.
type bind struct {
	from, to string
	writable bool
}

// Mount points of the engines in a box. They lie on a tmpfs, so that nothing
// is made in the root for them.
const (
	boxPackages = "/run/kedge/packages" // the files of the lock
	boxFiles    = "/run/kedge/files"    // the request's local files
	boxCache    = "/run/kedge/cache"    // metadata, kept between sessions
	boxTools    = "/run/kedge/tools"    // programs and lists that the engine wrote
)

// capabilities are those without which rpm or dpkg cannot unpack or a usual
// scriptlet fails. Not among them: CAP_SYS_ADMIN, CAP_MKNOD, CAP_NET_*,
// CAP_SYS_PTRACE, CAP_SYS_RAWIO, CAP_SYS_MODULE, CAP_SYS_TIME, CAP_SYS_BOOT.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID",
	"CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_KILL", "CAP_SYS_CHROOT",
}

const (
	maxStdout = 64 << 20 // of a query; an image has a few thousand packages
	maxTail   = 64 << 10 // of a transaction's output
	boxEnd    = 5 * time.Second
)

// command is a program to run in a box.
type command struct {
	argv   []string
	dir    string // working directory; "/" if empty
	stdin  []byte
	report bool // give the program descriptor 3 for what it reports
	// together sends both outputs through one pipe: nothing of it can be told
	// apart, and all of it is in order.
	together bool
	env      []string // NAME=VALUE
}

// outcome is what came out of a box.
type outcome struct {
	stdout string // of a query; merged into tail as well; empty where both go together
	report string // what came through descriptor 3
	tail   string // stdout and stderr, the last 64 KiB
	code   int    // exit status
}

// run runs a command. The error is non-nil only where the sandbox itself
// failed or ctx ended; a command that fails has a code.
func (b *box) run(ctx context.Context, c command) (*outcome, error) {
	filter, err := filterFile()
	if err != nil {
		return nil, err
	}
	defer filter.Close()
	limited, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	statusR, statusW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer statusR.Close()
	defer statusW.Close()
	cmd := exec.CommandContext(limited, b.s.bwrap, append(b.args(c), append([]string{"--"}, c.argv...)...)...)
	cmd.Env = []string{}
	cmd.WaitDelay = boxEnd
	// bwrap alone is not enough: killed while it starts, it leaves a child that
	// waits for it for ever.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.Stdin = bytes.NewReader(c.stdin)
	tail := &tailBuffer{max: maxTail}
	stdout := &cappedBuffer{max: maxStdout}
	cmd.Stdout, cmd.Stderr = io.MultiWriter(stdout, tail), tail
	if c.together {
		cmd.Stdout = tail
	}
	cmd.ExtraFiles = []*os.File{nil, filter, statusW}
	report := &cappedBuffer{max: maxStdout}
	var reading chan error
	if c.report {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		defer r.Close()
		defer w.Close()
		cmd.ExtraFiles[0] = w
		reading = make(chan error, 1)
		go func() {
			_, err := io.Copy(report, r)
			reading <- err
		}()
		err = cmd.Start()
		w.Close()
		if err != nil {
			return nil, causeOr(limited, err)
		}
	} else if err := cmd.Start(); err != nil {
		return nil, causeOr(limited, err)
	}
	statusW.Close()
	watched := make(chan struct{})
	go func() {
		watch(limited, statusR, cancel)
		close(watched)
	}()
	err = cmd.Wait()
	over := context.Cause(limited)
	cancel(nil)
	statusR.Close()
	<-watched
	if reading != nil {
		err = errors.Join(err, <-reading)
	}
	if over != nil {
		return nil, over
	}
	out := &outcome{stdout: stdout.String(), report: report.String(), tail: tail.String(), code: cmd.ProcessState.ExitCode()}
	b.s.log.Debug("ran in the sandbox", "command", strings.Join(c.argv, " "), "exit", out.code, "output", lastLines(out.tail, 20))
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return nil, fmt.Errorf("run %s in the sandbox: %w", c.argv[0], err)
	}
	if out.code != 0 && strings.HasPrefix(out.tail, "bwrap: ") {
		return nil, fault.New(fault.Internal, "", "run %s in the sandbox: %s", c.argv[0], lastLines(out.tail, 3))
	}
	return out, nil
}

// causeOr is why a context ended, or err where it did not: a program that is not
// started for that says only that it was cancelled.
func causeOr(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// args are bwrap's, up to the command.
func (b *box) args(c command) []string {
	rootBind := "--ro-bind"
	if b.writable {
		rootBind = "--bind"
	}
	scratch := scratchSize()
	a := []string{
		rootBind, b.root, "/",
		"--dev", "/dev", "--proc", "/proc",
		"--tmpfs", "/sys", "--remount-ro", "/sys",
		"--size", scratch, "--tmpfs", "/run", "--size", scratch, "--tmpfs", "/boot", "--size", scratch, "--tmpfs", "/dev/shm",
		// Without the sticky bit and everybody's right to write, apt's
		// unprivileged user cannot work.
		"--perms", "1777", "--size", scratch, "--tmpfs", "/tmp", "--perms", "1777", "--size", scratch, "--tmpfs", "/var/tmp",
		"--bind", filepath.Join(b.root, "usr/lib/opt"), "/opt",
		"--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--hostname", "localhost",
		"--die-with-parent", "--new-session", "--seccomp", "4", "--json-status-fd", "5",
		"--cap-drop", "ALL",
	}
	// What the kernel shows beside processes is the machine's: root in the box
	// could write settings (core_pattern), and bwrap covers not all of it.
	for _, name := range b.s.kernelFiles {
		a = append(a, "--ro-bind", "/proc/"+name, "/proc/"+name)
	}
	if !b.net {
		a = append(a, "--unshare-net")
	}
	for _, name := range capabilities {
		a = append(a, "--cap-add", name)
	}
	for _, m := range b.binds {
		how := "--ro-bind"
		if m.writable {
			how = "--bind"
		}
		a = append(a, how, m.from, m.to)
	}
	env := append([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/tmp", "LC_ALL=C.UTF-8", "TERM=dumb", "SYSTEMD_OFFLINE=1",
		"SOURCE_DATE_EPOCH=" + strconv.FormatInt(b.s.epoch().Unix(), 10),
		// What a kernel needs is done when all packages are there.
		"KERNEL_INSTALL_BYPASS=1", "INITRD=No", "DRACUT_NO_MKNOD=1",
		// What compiles Python in a scriptlet does it the same way each time.
		"PYTHONHASHSEED=0",
	}, append(slices.Clone(b.env), c.env...)...)
	a = append(a, "--clearenv")
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		a = append(a, "--setenv", name, value)
	}
	dir := c.dir
	if dir == "" {
		dir = "/"
	}
	return append(a, "--chdir", dir)
}

// kernelFiles are the entries of the machine's /proc that are no processes and
// that root could write to.
func kernelFiles() ([]string, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.Name()[0] >= '0' && e.Name()[0] <= '9' || e.Type()&fs.ModeSymlink != 0 {
			continue
		}
		st, err := e.Info()
		if err != nil {
			return nil, err
		}
		if st.IsDir() || st.Mode().Perm()&0o222 != 0 {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// tailBuffer keeps the last max bytes written to it.
type tailBuffer struct {
	max int
	b   []byte
}

func (t *tailBuffer) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if len(t.b) > 2*t.max {
		t.b = append(t.b[:0], t.b[len(t.b)-t.max:]...)
	}
	return len(p), nil
}

func (t *tailBuffer) String() string { return string(t.b[max(0, len(t.b)-t.max):]) }

// cappedBuffer keeps the first max bytes and forgets the rest.
type cappedBuffer struct {
	max int
	bytes.Buffer
}

func (c *cappedBuffer) Write(p []byte) (int, error) {
	if room := c.max - c.Len(); room > 0 {
		c.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
