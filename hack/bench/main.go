// Command bench measures kedge against podman, umoci and ostree on the lab's
// base image, in one run on one machine, and prints a markdown table.
//
// Each figure is the best of several runs that start from the same state, with
// the page cache warm and earlier writes flushed. "The limit" is one process
// that does what nobody can leave out: decompress, hash the blob, the layer and
// each file, write the files.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"
)

type bench struct {
	kedge, layout, work, chunked string
	runs                         int
	only                         string
	registry                     *registry
	rows                         []row
}

func main() {
	var b bench
	flag.StringVar(&b.kedge, "kedge", "bin/kedge", "the `PROGRAM` to measure")
	flag.StringVar(&b.layout, "layout", "", "OCI layout `DIR` of the lab's base image (hack/lab/base-image.sh prints it)")
	flag.StringVar(&b.chunked, "chunked", "", "OCI layout `DIR` of the ostree-chunked image (hack/lab/chunked/large.sh prints it); may be empty")
	flag.StringVar(&b.work, "work", "", "scratch `DIR` on the file system to measure; made and removed")
	flag.IntVar(&b.runs, "runs", 3, "take the best of `N` runs")
	flag.StringVar(&b.only, "only", "", "only the rows whose name has `TEXT` in it")
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
	if b.kedge, err = filepath.Abs(b.kedge); err != nil {
		return err
	}
	if b.work == "" {
		b.work, err = os.MkdirTemp("", "kedge-bench-")
	} else {
		err = os.MkdirAll(b.work, 0o755)
	}
	if err != nil {
		return err
	}
	defer func() {
		if e := b.remove(b.work); err == nil {
			err = e
		}
	}()
	if b.registry, err = serve(filepath.Join(b.work, "registry")); err != nil {
		return err
	}
	defer b.registry.close()
	for _, group := range []func(context.Context) error{b.cold, b.upgrades} {
		if err := group(ctx); err != nil {
			return err
		}
	}
	b.print()
	return nil
}

// program is something to measure. prepare makes the state that a run starts
// from, in the directory dir below the scratch directory, and returns the
// command line.
type program struct {
	name    string
	dir     string
	keep    bool // what a run leaves is of use to the next program
	prepare func(dir string) (argv []string, err error)
}

// compare runs programs in turn, several times, so that what else the machine
// does slows all of them alike, and records the best run of each.
func (b *bench) compare(ctx context.Context, name string, programs []program) error {
	best := make([]measured, len(programs))
	for i := range b.runs {
		for k, p := range programs {
			dir, err := b.fresh(p.dir)
			if err != nil {
				return err
			}
			argv, err := p.prepare(dir)
			if err != nil {
				return err
			}
			m, err := b.measure(ctx, argv)
			if err != nil {
				return err
			}
			if i == 0 || m.Wall < best[k].Wall {
				best[k].Wall = m.Wall
			}
			if i == 0 || m.CPU < best[k].CPU {
				best[k].CPU = m.CPU
			}
			best[k].RSS = max(best[k].RSS, m.RSS)
			if p.keep {
				continue
			}
			if err := b.remove(dir); err != nil {
				return err
			}
		}
	}
	for k, p := range programs {
		b.record(name, p.name, best[k])
	}
	return nil
}

// remove deletes a directory that may hold immutable deployments and mounts.
func (b *bench) remove(dir string) error {
	// podman mounts its own directory over itself, and leaves that so when it
	// is killed.
	_ = unix.Unmount(filepath.Join(dir, "root/overlay"), unix.MNT_DETACH)
	_ = unix.Unmount(filepath.Join(dir, "podman/root/overlay"), unix.MNT_DETACH)
	_ = exec.Command("chattr", "-R", "-f", "-i", dir).Run()
	return os.RemoveAll(dir)
}

// fresh returns a directory that does not exist, in place of what was there.
func (b *bench) fresh(name string) (string, error) {
	dir := filepath.Join(b.work, name)
	return dir, b.remove(dir)
}
