// Command bench measures kedge against podman, umoci, ostree and mkcomposefs on
// the lab's base image, in one run on one machine, and prints a markdown table.
//
// Each run of each program has an ext4 file system of its own that was just
// made. Each figure is the best of several runs, one for what needs long to
// prepare, with the page cache warm and earlier writes flushed. "The limit" is one process that does what nobody can
// leave out: decompress, hash the blob, the layer and each file, write the
// files.
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

	"golang.org/x/sys/unix"
)

type bench struct {
	kedge, layout, work  string
	chunked, mkcomposefs string
	runs                 int
	only                 string
	registry             *registry
	rows                 []row
}

func main() {
	var b bench
	flag.StringVar(&b.kedge, "kedge", "bin/kedge", "the `PROGRAM` to measure")
	flag.StringVar(&b.layout, "layout", "", "OCI layout `DIR` of the lab's base image (hack/lab/base-image.sh prints it)")
	flag.StringVar(&b.chunked, "chunked", "", "OCI layout `DIR` of the ostree-chunked image (hack/lab/chunked/large.sh prints it); may be empty")
	flag.StringVar(&b.mkcomposefs, "mkcomposefs", "", "the `PROGRAM` that runs mkcomposefs (hack/lab/mkcomposefs.sh); may be empty")
	flag.StringVar(&b.work, "work", "", "scratch `DIR` with 15 GB of free space; made and removed")
	flag.IntVar(&b.runs, "runs", 2, "take the best of `N` runs")
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
		b.work = os.TempDir()
	}
	if err := os.MkdirAll(b.work, 0o755); err != nil {
		return err
	}
	if b.work, err = os.MkdirTemp(b.work, "kedge-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.work)) }()
	if b.registry, err = serve(filepath.Join(b.work, "registry")); err != nil {
		return err
	}
	defer b.registry.close()
	b.heading()
	for _, group := range []func(context.Context) error{b.cold, b.large, b.upgrades} {
		if err := group(ctx); err != nil {
			return err
		}
	}
	return nil
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
		}
	}
	for k, p := range programs {
		b.record(row{name, p.name, best[k].usage, best[k].RSS})
		if best[k].Import.Wall > 0 {
			b.record(row{name, p.name + ": the import in it", best[k].Import, 0})
		}
	}
	return nil
}

// once measures a program on a new disk.
func (b *bench) once(ctx context.Context, p program) (m measured, err error) {
	d, err := newDisk(b.work)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, d.remove()) }()
	argv, err := p.prepare(filepath.Join(d.dir, "store"))
	if err != nil {
		return m, err
	}
	return b.measure(ctx, argv)
}

// quietly runs a command that is not measured.
func (b *bench) quietly(argv ...string) error {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.ExtraFiles = []*os.File{null} // progressFD
	cmd.Env = append(os.Environ(), b.registry.env())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
	}
	return nil
}
