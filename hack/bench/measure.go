package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// roleVariable in the environment makes the program another one: "measure"
// runs its arguments and writes what they took, "limit" does the limit's work.
const roleVariable = "KEDGE_BENCH_ROLE"

// resultVariable names the file that "measure" writes.
const resultVariable = "KEDGE_BENCH_RESULT"

// measured is what a program took.
type measured struct {
	Wall time.Duration
	CPU  time.Duration
	RSS  int64 // bytes, the largest of the program and the children it waited for
}

// measure runs a program once, after what was written before is on disk. A
// small process runs it: Linux counts the memory of a process that forks as the
// child's, and this one holds a registry.
func (b *bench) measure(ctx context.Context, argv []string) (m measured, err error) {
	unix.Sync()
	result := filepath.Join(b.work, "measured")
	cmd := exec.CommandContext(ctx, os.Args[0], append([]string{"--"}, argv...)...)
	cmd.Env = append(os.Environ(), roleVariable+"=measure", resultVariable+"="+result, "CONTAINERS_REGISTRIES_CONF="+b.registry.config)
	if out, err := cmd.CombinedOutput(); err != nil {
		return m, fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
	}
	data, err := os.ReadFile(result)
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal(data, &m)
}

func measureChild() error {
	argv := os.Args[2:]
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), roleVariable+"=limit")
	start := time.Now()
	err := cmd.Run()
	m := measured{Wall: time.Since(start)}
	if err != nil {
		return err
	}
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
