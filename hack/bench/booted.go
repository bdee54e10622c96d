package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
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

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/units"
)

// What the rows of booted hosts are called.
const (
	bootedBoot   = "booted host, boot"
	bootedStage  = "booted host, switch to an image with a layer more"
	bootedFinal  = "booted host, finalisation at shutdown"
	bootedReturn = "booted host, rollback"

	withoutUnits = "systemd without kedge's units"
	withUnits    = "kedge's units"
)

// booted measures what kedge does on a booted host: the base image's own systemd
// as a container of this machine, on ext4. A boot's seconds are those of
// systemd-analyze, until nothing is left to start; its CPU seconds those of all
// processes. A finalisation is the stop of its unit.
func (b *bench) booted(ctx context.Context) error {
	if !b.wanted(bootedBoot) {
		return nil
	}
	for _, h := range []bootedHost{
		{"", ostree, "ostree/deploy/*/deploy/*/etc", "ostree/deploy/*/var"},
		{", composefs", composefs, "state/deploy/*/etc", "state/os/*/var"},
	} {
		var best []row
		for range b.runs {
			rows, err := b.live(ctx, h)
			if err != nil {
				return err
			}
			if best == nil {
				best = rows
			}
			for i, r := range rows {
				best[i].better(r.usage)
				best[i].rss = max(best[i].rss, r.rss)
			}
		}
		for _, r := range best {
			b.record(r)
		}
	}
	return nil
}

// bootedHost is a host by its backend: what distinguishes its rows, kedge's
// flags, and where its /etc and its /var are.
type bootedHost struct {
	suffix    string
	flags     []string
	etc, vars string
}

// live is a life of a host: boots, an update, and the way back.
func (b *bench) live(ctx context.Context, h bootedHost) (rows []row, err error) {
	d, err := newDisk(b.work)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.remove()) }()
	if _, err := output("cp", b.self, filepath.Join(b.work, "bench")); err != nil {
		return nil, err
	}
	argv := []string{b.kedge, "install", "to-filesystem", "--image", "oci:" + b.layout + ":base", "--bootloader", "none"}
	if err := errors.Join(b.quietly(ctx, append(append(argv, h.flags...), mountPoint)...), b.addUnits(h)); err != nil {
		return nil, err
	}
	add := func(name, program string, m measured) {
		rows = append(rows, row{name, program + h.suffix, m.usage, m.RSS})
		if m.Import.Wall > 0 {
			rows = append(rows, row{name, program + h.suffix + importPart, m.Import, 0})
		}
	}
	// The first boot has work that no other has.
	if _, err := b.bootOnce(ctx, withUnits, nil); err != nil {
		return nil, err
	}
	var best [2]measured
	for i := range 3 {
		for k, how := range []string{withoutUnits, withUnits} {
			m, err := b.bootOnce(ctx, how, nil)
			if err != nil {
				return nil, err
			}
			if i == 0 {
				best[k] = m
			}
			best[k].better(m)
		}
	}
	add(bootedBoot, withoutUnits, best[0])
	add(bootedBoot, withUnits, best[1])
	_, err = b.bootOnce(ctx, withUnits, func(c *container) error {
		m, err := c.measure(ctx, bootedProgram, "--progress-fd", progressFD, "switch", "oci:/run/layout:lab")
		if err != nil {
			return err
		}
		add(bootedStage, "kedge switch", m)
		before, err := c.cpu()
		if err != nil {
			return err
		}
		if m, err = c.measure(ctx, "systemctl", "stop", units.Finalize); err != nil {
			return err
		}
		after, err := c.cpu()
		m.CPU, m.RSS = after-before, 0
		add(bootedFinal, units.Finalize, m)
		return err
	})
	if err != nil {
		return nil, err
	}
	_, err = b.bootOnce(ctx, withUnits, func(c *container) error {
		m, err := c.measure(ctx, bootedProgram, "rollback")
		add(bootedReturn, "kedge rollback", m)
		return err
	})
	return rows, err
}

// Where a booted host has kedge, and the benchmark's scratch directory.
const (
	bootedProgram = "/var/lib/kedge/bin/kedge"
	bootedWork    = "/run/bench"
)

// addUnits puts kedge and its units where they are on a host whose image has
// neither.
func (b *bench) addUnits(h bootedHost) error {
	etc, err := one(h.etc)
	if err != nil {
		return err
	}
	vars, err := one(h.vars)
	if err != nil {
		return err
	}
	program := filepath.Join(vars, strings.TrimPrefix(bootedProgram, "/var"))
	dir := filepath.Join(etc, "systemd/system")
	err = errors.Join(os.MkdirAll(filepath.Dir(program), 0o755), os.MkdirAll(filepath.Join(etc, "containers"), 0o755),
		os.WriteFile(filepath.Join(etc, "containers/policy.json"), []byte(lab.AcceptUnsigned), 0o644))
	if err == nil {
		_, err = output("cp", b.kedge, program)
	}
	for _, name := range units.Names {
		text, terr := units.Text(name, bootedProgram)
		err = errors.Join(err, terr, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	for _, link := range units.Enabled {
		path := filepath.Join(dir, link)
		err = errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink("../"+filepath.Base(link), path))
	}
	return err
}

// one returns the path below the mount point that a pattern stands for.
func one(pattern string) (string, error) {
	found, err := filepath.Glob(filepath.Join(mountPoint, pattern))
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("%s is %q, want one", pattern, found)
	}
	if err != nil {
		return "", err
	}
	return found[0], nil
}

// container is a booted root.
type container struct {
	b      *bench
	cgroup string
	init   string // process number
}

//go:embed boot.sh
var bootScript string

// bootOnce boots the default entry, with kedge's units or without, calls fn, and
// cuts the power. It returns what the boot took.
func (b *bench) bootOnce(ctx context.Context, how string, fn func(*container) error) (m measured, err error) {
	entry, err := lab.DefaultEntry(filepath.Join(mountPoint, "boot"))
	if err != nil {
		return m, err
	}
	c := &container{b: b}
	if c.cgroup, err = newCgroup(); err != nil {
		return m, err
	}
	group, err := os.Open(c.cgroup)
	if err != nil {
		return m, err
	}
	defer group.Close()
	empty := filepath.Join(b.work, "root")
	if err := os.MkdirAll(empty, 0o755); err != nil {
		return m, err
	}
	argv := []string{
		"--mount", "--propagation", "private", "--pid", "--cgroup", "--uts", "--ipc", "--net", "--fork", "--kill-child", "sh", "-c", bootScript,
		"boot.sh", mountPoint, empty, filepath.Join(filepath.Dir(b.kedge), "kedge-initramfs"), b.layout, b.work, bootedWork,
	}
	argv = append(append(argv, strings.Fields(entry.Options)...), "systemd.unit=multi-user.target")
	if how == withoutUnits {
		for _, name := range units.Names {
			argv = append(argv, "systemd.mask="+name)
		}
	}
	cmd := exec.CommandContext(ctx, "unshare", argv...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL, UseCgroupFD: true, CgroupFD: int(group.Fd())}
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return m, errors.Join(err, c.remove())
	}
	if err = c.await(ctx); err == nil {
		m, err = c.cost()
	}
	if err == nil && fn != nil {
		err = fn(c)
	}
	err = errors.Join(err, os.WriteFile(filepath.Join(c.cgroup, "cgroup.kill"), []byte("1"), 0))
	_ = cmd.Wait() // it was killed
	err = errors.Join(err, c.remove())
	if err != nil {
		err = fmt.Errorf("boot %s: %w\n%s", entry.File, err, said.String())
	}
	return m, err
}

// await waits until the boot has nothing left to start.
func (c *container) await(ctx context.Context) error {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		b, _ := os.ReadFile(filepath.Join(c.cgroup, "init.scope/cgroup.procs"))
		c.init, _, _ = strings.Cut(string(b), "\n")
		var state []byte
		if c.init != "" {
			argv := c.inside("systemctl", "is-system-running", "--wait")
			state, _ = exec.CommandContext(ctx, argv[0], argv[1:]...).Output() // fails where a unit did
		}
		switch s := strings.TrimSpace(string(state)); {
		case s == "running":
			return nil
		case s == "degraded":
			failed, err := output(c.inside("systemctl", "--failed", "--no-legend")...)
			return errors.Join(fmt.Errorf("units failed: %s", failed), err)
		case ctx.Err() != nil:
			return ctx.Err()
		case time.Now().After(deadline):
			return errors.New("systemd does not come up")
		}
	}
}

// cost is what the boot took.
func (c *container) cost() (m measured, err error) {
	out, err := output(c.inside("systemctl", "show", "-p", "UserspaceTimestampMonotonic", "-p", "FinishTimestampMonotonic")...)
	if err != nil {
		return m, err
	}
	var began, ended int64
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return m, err
		}
		if key == "FinishTimestampMonotonic" {
			ended = n
		} else {
			began = n
		}
	}
	m.Wall = time.Duration(ended-began) * time.Microsecond
	m.CPU, err = c.cpu()
	return m, err
}

// cpu is the processor time of all that has run in the container.
func (c *container) cpu() (time.Duration, error) {
	b, err := os.ReadFile(filepath.Join(c.cgroup, "cpu.stat"))
	if err != nil {
		return 0, err
	}
	var us int64
	_, err = fmt.Sscanf(string(b), "usage_usec %d", &us)
	return time.Duration(us) * time.Microsecond, err
}

// inside is a command line that runs a program in the container.
func (c *container) inside(argv ...string) []string {
	return append([]string{"nsenter", "--target", c.init, "--mount", "--pid", "--cgroup", "--uts", "--ipc", "--net", "--root", "--wd"}, argv...)
}

// measure measures a program in the container, by this program in there.
func (c *container) measure(ctx context.Context, argv ...string) (measured, error) {
	self := []string{bootedWork + "/bench", "--", "env", "--unset=CONTAINERS_REGISTRIES_CONF"}
	return c.b.measureBy(ctx, c.inside(append(self, argv...)...), bootedWork)
}

// newCgroup makes a control group for a container.
func newCgroup() (string, error) {
	top, err := output("findmnt", "--noheadings", "--first-only", "--types", "cgroup2", "--output", "TARGET")
	if err != nil {
		return "", fmt.Errorf("find the control groups: %w", err)
	}
	return os.MkdirTemp(top, "kedge-bench-")
}

// remove removes the control groups, whose processes have been killed.
func (c *container) remove() error {
	var dirs []string
	err := filepath.WalkDir(c.cgroup, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	for _, dir := range slices.Backward(dirs) {
		rerr := os.Remove(dir)
		for deadline := time.Now().Add(10 * time.Second); errors.Is(rerr, unix.EBUSY) && time.Now().Before(deadline); {
			time.Sleep(20 * time.Millisecond)
			rerr = os.Remove(dir)
		}
		err = errors.Join(err, rerr)
	}
	return err
}
