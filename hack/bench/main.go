// Command bench measures kedge against podman, umoci, ostree and mkcomposefs on
// the lab's base image, in one run on one machine, and prints a markdown table.
//
// Each run of each program has an ext4 file system of its own that was just
// made. Each figure is the best of several runs, one for what needs long to
// prepare, with the page cache warm and earlier writes flushed. "The limit" is
// one process that does what nobody can leave out: decompress, hash the blob,
// the layer and each file, write the files.
//
// A row is printed when it is known. A run that is interrupted removes what it
// made, one that is killed leaves it to the next; layers that take long to make
// are kept in the cache.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

type bench struct {
	kedge, layout        string
	chunked, mkcomposefs string
	lab                  string
	cache                string
	runs                 int
	only, update         string

	self           string // this program
	work, fixtures string // directories
	registry       *registry
	started        time.Time
	rows           []row
}

func main() {
	var b bench
	flag.StringVar(&b.kedge, "kedge", "bin/kedge", "the `PROGRAM` to measure")
	flag.StringVar(&b.layout, "layout", "", "OCI layout `DIR` of the lab's base image (hack/lab/base-image.sh prints it)")
	flag.StringVar(&b.chunked, "chunked", "", "OCI layout `DIR` of the ostree-chunked image (hack/lab/chunked/large.sh prints it); may be empty")
	flag.StringVar(&b.mkcomposefs, "mkcomposefs", "", "the `PROGRAM` that runs mkcomposefs (hack/lab/mkcomposefs.sh); may be empty")
	flag.StringVar(&b.lab, "packages", "", "`DIR` of roots with package managers (hack/lab/packages.sh prints it); may be empty")
	flag.StringVar(&b.cache, "cache", "", "`DIR` with 15 GB of free space, not a tmpfs, for what is made and kept between runs")
	flag.IntVar(&b.runs, "runs", 2, "take the best of `N` runs")
	flag.StringVar(&b.only, "only", "", "only the rows whose name has `TEXT` in it")
	flag.StringVar(&b.update, "update", "", "put the figures into the `PAGE`, docs/performance.md")
	flag.Parse()
	switch os.Getenv(roleVariable) {
	case "measure":
		exit(measureChild())
	case "limit":
		exit(limit(flag.Arg(0), flag.Arg(1)))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	exit(b.run(ctx))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (b *bench) run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return fmt.Errorf("needs root: owners, xattrs, mounts")
	}
	if b.only != "" && b.update != "" {
		return errors.New("-update is for all rows, not for those of -only")
	}
	if b.kedge, err = filepath.Abs(b.kedge); err != nil {
		return err
	}
	if b.cache, err = filepath.Abs(b.cache); err != nil {
		return err
	}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	done, err := b.openWork()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	if b.registry, err = serve(filepath.Join(b.work, "registry")); err != nil {
		return err
	}
	defer b.registry.close()
	if err := b.pushBase(); err != nil {
		return err
	}
	b.started = time.Now()
	fmt.Print(b.heading())
	for _, group := range []func(context.Context) error{b.cold, b.upgrades, b.many, b.large, b.packages, b.booted} {
		if err := group(ctx); err != nil {
			return err
		}
	}
	fmt.Print("\n" + b.aims())
	if b.update != "" {
		return b.updatePage()
	}
	return nil
}

// openWork takes the scratch directory, which is for one run at a time, and
// removes what a run that was killed left.
func (b *bench) openWork() (done func() error, err error) {
	b.work = filepath.Join(b.cache, "bench-work")
	if err := os.MkdirAll(b.work, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.Open(b.work)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("another benchmark is running: %w", err)
	}
	clear := func() error {
		err := removeOld(b.work)
		entries, rerr := os.ReadDir(b.work)
		err = errors.Join(err, rerr)
		for _, e := range entries {
			err = errors.Join(err, os.RemoveAll(filepath.Join(b.work, e.Name())))
		}
		return err
	}
	if err := clear(); err != nil {
		return nil, fmt.Errorf("remove what an earlier run left: %w", err)
	}
	return func() error { return errors.Join(clear(), os.Remove(b.work), lock.Close()) }, nil
}

// pushBase serves the image that others are made from.
func (b *bench) pushBase() error {
	base, err := fromLayout(b.layout, "base20")
	if err != nil {
		return err
	}
	return errors.Join(b.registry.link(b.layout), b.registry.push("base20", base), b.openFixtures(base))
}

// wanted reports whether a row is to be measured.
func (b *bench) wanted(name string) bool { return strings.Contains(name, b.only) }

// program is something to measure. prepare makes the state that a run starts
// from in a directory that does not exist yet, on a file system of its own, and
// returns the command line.
type program struct {
	name    string
	prepare func(dir string) (argv []string, err error)
}

// compare runs programs in turn, several times, so that what else the machine
// does slows all of them alike, and prints the best run of each.
func (b *bench) compare(ctx context.Context, name string, runs int, programs []program) error {
	if !b.wanted(name) {
		return nil
	}
	best := make([]measured, len(programs))
	for i := range runs {
		for k, p := range programs {
			m, err := b.once(ctx, p)
			if err != nil {
				return err
			}
			if i == 0 {
				best[k] = m
			} else {
				best[k].better(m)
			}
			if i < runs-1 {
				continue
			}
			rss := best[k].RSS
			if ofKedge(p.name) {
				rss = best[k].Own // without the package managers that it runs
			}
			b.record(row{name, p.name, best[k].usage, rss})
			if best[k].Import.Wall > 0 {
				b.record(row{name, p.name + importPart, best[k].Import, 0})
			}
		}
	}
	return nil
}

// once measures a program on a new disk.
func (b *bench) once(ctx context.Context, p program) (m measured, err error) {
	if err := ctx.Err(); err != nil {
		return m, err
	}
	d, err := newDisk(b.work)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, d.remove()) }()
	argv, err := p.prepare(filepath.Join(mountPoint, "store"))
	if err != nil {
		return m, err
	}
	return b.measure(ctx, argv)
}

// quietly runs a command that is not measured.
func (b *bench) quietly(ctx context.Context, argv ...string) error {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	endsWith(cmd)
	cmd.ExtraFiles = []*os.File{null} // progressFD
	cmd.Env = append(os.Environ(), b.registry.env())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
	}
	return nil
}
