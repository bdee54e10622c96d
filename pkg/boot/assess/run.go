package assess

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	v1 "github.com/kedge-os/kedge/api/v1"
)

const (
	// maxOutput is what is kept of a check's output: its end.
	maxOutput = 4 << 10
	// maxChecks is how many checks that did not pass a verdict holds.
	maxChecks = 20
	// pipeWait is how long the output of a check that has ended is waited for,
	// where a process that left the check's group holds it open.
	pipeWait = time.Second
)

// Run runs the checks one after the other and returns the verdict, without the
// boot's id and its time. It ends at the first required check that does not
// pass: what is to come back should come back soon. A ctx that ends is an
// error, and no verdict.
//
// before is called with each check that is about to run, done with each result.
func Run(ctx context.Context, root string, checks []Check, before func(Check), done func(v1.HealthCheck)) (*v1.Health, error) {
	h := &v1.Health{State: v1.HealthGood}
	for _, c := range checks {
		var r v1.HealthCheck
		switch {
		case h.State == v1.HealthFailed:
			r = v1.HealthCheck{Outcome: v1.CheckNotRun}
		case c.Disabled:
			r = v1.HealthCheck{Outcome: v1.CheckDisabled}
		default:
			before(c)
			r = runOne(ctx, root, c)
			if err := ctx.Err(); err != nil {
				return nil, fmt.Errorf("run %s: %w", c.Path, err)
			}
		}
		r.Path, r.Required = c.Path, c.Required
		done(r)
		if r.Outcome == v1.CheckPassed {
			h.Passed++
			continue
		}
		if len(h.Checks) < maxChecks {
			h.Checks = append(h.Checks, r)
		}
		if c.Required && (r.Outcome == v1.CheckFailed || r.Outcome == v1.CheckTimedOut) {
			h.State, h.Check = v1.HealthFailed, c.Path
			h.Reason = fmt.Sprintf("%s %s (%s)", c.Path, r.Outcome, r.Status)
		}
	}
	return h, nil
}

// runOne runs a check in a session of its own, so that nothing it does to its
// terminal or process group reaches this one, and kills the whole group when
// the check has ended or its time is up.
func runOne(ctx context.Context, root string, c Check) v1.HealthCheck {
	file := filepath.Join(root, c.Path)
	args := []string{file}
	if c.Shell {
		args = []string{"bash", file}
	} else if !executable(file) {
		return v1.HealthCheck{Outcome: v1.CheckNotExecutable, Status: notExecutable(file)}
	}
	var out tail
	cmd := exec.Command(args[0], args[1:]...) //nolint:noctx // the group is killed below, not the process
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = pipeWait
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return v1.HealthCheck{Outcome: v1.CheckFailed, Status: err.Error()}
	}
	ended := make(chan struct{})
	go func() {
		waitEnd(cmd.Process.Pid)
		close(ended)
	}()
	timer := time.NewTimer(c.Timeout)
	defer timer.Stop()
	r := v1.HealthCheck{Outcome: v1.CheckFailed}
	select {
	case <-ended:
	case <-ctx.Done():
	case <-timer.C:
		r.Outcome = v1.CheckTimedOut
	}
	// The check's own process is not waited for yet: its number is still that of
	// its group and of nobody else.
	_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // a group that is gone is what is wanted
	<-ended
	err := cmd.Wait()
	r.Milliseconds = time.Since(began).Milliseconds()
	r.Output = out.String()
	switch {
	case r.Outcome == v1.CheckTimedOut:
		r.Status = "after " + c.Timeout.String()
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		r.Outcome, r.Output = v1.CheckPassed, ""
	default:
		r.Status = err.Error()
	}
	return r
}

func notExecutable(file string) string {
	st, err := os.Stat(file)
	switch {
	case err != nil:
		return err.Error()
	case !st.Mode().IsRegular():
		return "no regular file"
	}
	return "mode " + st.Mode().Perm().String()
}

// waitEnd waits until a child has ended, and leaves it to be waited for.
func waitEnd(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// tail keeps the end of what is written to it.
type tail struct {
	kept []byte
	lost int64
}

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - maxOutput; over > 0 {
		t.lost += int64(over)
		t.kept = append(t.kept[:0], t.kept[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	text := strings.ToValidUTF8(string(t.kept), "?")
	if t.lost > 0 {
		return fmt.Sprintf("[%d bytes before this]\n%s", t.lost, text)
	}
	return text
}
