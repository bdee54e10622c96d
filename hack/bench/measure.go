package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	v1 "github.com/kedge-os/kedge/api/v1"
)

// roleVariable in the environment makes the program another one: "measure"
// runs its arguments and writes what they took, "limit" does the limit's work.
const roleVariable = "KEDGE_BENCH_ROLE"

// resultVariable names the file that "measure" writes.
const resultVariable = "KEDGE_BENCH_RESULT"

// progressFD is the descriptor on which a measured kedge tells its progress.
const progressFD = "3"

// usage is time spent, by the clock and by the processors.
type usage struct {
	Wall time.Duration
	CPU  time.Duration
}

func (u *usage) better(o usage) {
	u.Wall, u.CPU = min(u.Wall, o.Wall), min(u.CPU, o.CPU)
}

// measured is what a program took.
type measured struct {
	usage
	// Import is the part up to the commit of the image, without the deployment;
	// zero for programs that do not tell.
	Import usage
	RSS    int64 // bytes, the largest of the program and the children it waited for
	Own    int64 // bytes, of the program alone; what it takes in its last moment may be missing
}

func (m *measured) better(o measured) {
	m.usage.better(o.usage)
	m.Import.better(o.Import)
	m.RSS, m.Own = max(m.RSS, o.RSS), max(m.Own, o.Own)
}

// measure runs a program once, after what was written before is on disk. A
// small process runs it: Linux counts the memory of a process that forks as the
// child's, and this one holds a registry.
func (b *bench) measure(ctx context.Context, argv []string) (m measured, err error) {
	return b.measureBy(ctx, append([]string{b.self, "--"}, argv...), b.work)
}

// measureBy is measure with a command line that runs this program, for which the
// scratch directory is work.
func (b *bench) measureBy(ctx context.Context, argv []string, work string) (m measured, err error) {
	unix.Sync()
	const name = "measured"
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	endsWith(cmd)
	cmd.Env = append(os.Environ(), roleVariable+"=measure", resultVariable+"="+filepath.Join(work, name), b.registry.env())
	if out, err := cmd.CombinedOutput(); err != nil {
		return m, fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
	}
	data, err := os.ReadFile(filepath.Join(b.work, name))
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal(data, &m)
}

// endsWith has a program be told to end when the context of its command does, or
// this process.
func endsWith(cmd *exec.Cmd) {
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM}
}

func measureChild() error {
	argv := os.Args[2:]
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), roleVariable+"=limit")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd.ExtraFiles = []*os.File{w}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	imported := make(chan usage, 1)
	go func() { imported <- watchImport(r, cmd.Process.Pid, start) }()
	ended, own := make(chan struct{}), make(chan int64, 1)
	go func() { own <- watchMemory(cmd.Process.Pid, ended) }()
	err = cmd.Wait()
	m := measured{usage: usage{Wall: time.Since(start)}}
	close(ended)
	m.Own = <-own
	if err := errors.Join(err, w.Close()); err != nil {
		return err
	}
	m.Import = <-imported
	m.CPU = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		m.RSS = u.Maxrss * 1024
	}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return os.WriteFile(os.Getenv(resultVariable), data, 0o644)
}

// watchImport reads kedge's progress to its end, and returns what the process
// had used when it began with the deployment.
func watchImport(progress *os.File, pid int, start time.Time) (u usage) {
	for lines := bufio.NewScanner(progress); lines.Scan(); {
		var event v1.ProgressSteps
		if u.Wall == 0 && json.Unmarshal(lines.Bytes(), &event) == nil && event.Task == v1.TaskStaging {
			u.Wall, u.CPU = time.Since(start), cpuOf(pid)
		}
	}
	return u
}

// watchMemory returns the peak of a process's memory.
func watchMemory(pid int, ended <-chan struct{}) (peak int64) {
	for {
		select {
		case <-ended:
			return peak
		case <-time.After(20 * time.Millisecond):
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err != nil {
				continue // it ends
			}
			for line := range strings.Lines(string(status)) {
				if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
					var kb int64
					if _, err := fmt.Sscan(v, &kb); err == nil {
						peak = max(peak, kb<<10)
					}
				}
			}
		}
	}
}

// cpuOf returns the processor time of a running process, to 10 ms; proc(5).
func cpuOf(pid int) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(stat), ") ") // behind the program's name
	fields := strings.Fields(rest)
	const utime, stime = 11, 12 // counted from the state
	if len(fields) <= stime {
		return 0
	}
	const tick = 10 * time.Millisecond
	var used time.Duration
	for _, f := range fields[utime : stime+1] {
		n, err := strconv.Atoi(f)
		if err != nil {
			return 0
		}
		used += time.Duration(n) * tick
	}
	return used
}
