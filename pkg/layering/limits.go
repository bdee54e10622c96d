package layering

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
)

// What a box may take of the machine. Control groups would need an agreement
// with the service manager that owns them; a box has a process tree of its own,
// which can be counted, and which ends as a whole.
const (
	maxProcesses = 4096
	limitEvery   = 50 * time.Millisecond
	// maxScratch is the most that /tmp and each of its kin in a box may hold, in
	// bytes; an eighth of the memory if that is less.
	maxScratch = 2 << 30
)

// memory returns how much the machine has, in bytes.
func memory() int64 {
	var i unix.Sysinfo_t
	if err := unix.Sysinfo(&i); err != nil {
		return 4 << 30
	}
	return int64(i.Totalram) * int64(i.Unit)
}

func scratchSize() string { return strconv.FormatInt(min(maxScratch, memory()/8), 10) }

// watch ends a box, by cancel, that has more processes or memory than it may.
// status is what bwrap writes with --json-status-fd: first of all the process
// beneath which everything in the box is.
func watch(ctx context.Context, status io.Reader, cancel context.CancelCauseFunc) {
	var started struct {
		Child int `json:"child-pid"`
	}
	if err := json.NewDecoder(status).Decode(&started); err != nil || started.Child == 0 {
		return
	}
	limit := memory() / 4 * 3
	tick := time.NewTicker(limitEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		processes, bytes := tally(started.Child)
		var what string
		switch {
		case processes > maxProcesses:
			what = fmt.Sprintf("%d processes", processes)
		case bytes > limit:
			what = fmt.Sprintf("%d MB of memory", bytes>>20)
		default:
			continue
		}
		// The first process of a namespace takes all others with it.
		_ = unix.Kill(started.Child, unix.SIGKILL)
		cancel(fault.New(fault.Conflict, "leave out the package whose scriptlet does that", "the transaction took %s and was ended", what))
		return
	}
}

// tally counts a process and all beneath it, and the memory that each has for
// itself, in bytes.
func tally(pid int) (processes int, private int64) {
	page := int64(os.Getpagesize())
	for queue := []int{pid}; len(queue) > 0 && processes <= maxProcesses; queue = queue[1:] {
		dir := fmt.Sprintf("/proc/%d/", queue[0])
		statm, err := os.ReadFile(dir + "statm")
		if err != nil {
			continue
		}
		processes++
		var size, resident, shared int64
		if _, err := fmt.Sscan(string(statm), &size, &resident, &shared); err == nil {
			private += max(0, resident-shared) * page
		}
		threads, err := os.ReadDir(dir + "task")
		if err != nil {
			continue
		}
		for _, t := range threads {
			children, err := os.ReadFile(dir + "task/" + t.Name() + "/children")
			if err != nil {
				continue
			}
			for _, c := range strings.Fields(string(children)) {
				if n, err := strconv.Atoi(c); err == nil {
					queue = append(queue, n)
				}
			}
		}
	}
	return processes, private
}
