// Command demo shows kedge at work on a real image: it installs a disk from a
// registry, boots it, switches to a derived image, reboots into it and rolls
// back, with `kedge status` after each step. With -quick the same is done to an
// offline sysroot, without booting.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kedge-os/kedge/internal/lab"
)

func main() {
	quick := flag.Bool("quick", false, "work on an offline sysroot instead of booting machines")
	kedge := flag.String("kedge", "bin/kedge", "the kedge to show")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *kedge, *quick); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// demo is one showing.
type demo struct {
	*lab.World
	steps int
}

func run(ctx context.Context, kedge string, quick bool) (err error) {
	if os.Geteuid() != 0 {
		return fmt.Errorf("root is needed to mount disks and keep owners: sudo make demo")
	}
	kedge, err = filepath.Abs(kedge)
	if err != nil {
		return err
	}
	d := &demo{}
	d.step("A bootable Debian image, made of packages (cached after the first time: three minutes)")
	layout, err := lab.MakeAloud(ctx, "base-image.sh")
	if err != nil {
		return err
	}
	d.step("A registry on this machine, with that image in it as os:base")
	if d.World, err = lab.NewWorld(ctx, layout, kedge); err != nil {
		return err
	}
	defer func() {
		if cerr := d.Close(); err == nil {
			err = cerr
		}
	}()
	d.step("Two images built on it with podman: os:one has kedge in it, os:two also a new greeting")
	if err := d.BuildHostImage(ctx, "os:one", "one"); err != nil {
		return err
	}
	if err := d.Build(ctx, "os:two", "FROM "+d.Registry.Repo("os:one")+`
RUN echo two >/usr/share/marker && echo "Welcome to image two" >/etc/motd
LABEL org.opencontainers.image.version="two"
`, nil); err != nil {
		return err
	}
	if quick {
		err = d.offline(ctx)
	} else {
		err = d.booted(ctx)
	}
	if err == nil {
		fmt.Printf("\nThat was it: install, switch, roll back; at no moment was there no bootable root.\n")
	}
	return err
}

// offline shows the verbs on a sysroot in a directory.
func (d *demo) offline(ctx context.Context) error {
	root := filepath.Join(d.Dir, "host")
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	// Roots are immutable, and what is immutable cannot be removed.
	defer func() { _, _ = lab.Command(context.WithoutCancel(ctx), "chattr", "-R", "-f", "-i", root) }()
	d.step("Install os:one into a directory, as if it were a mounted disk")
	if err := d.kedge(ctx, "install", "to-filesystem", "--image", d.Registry.Repo("os:one"), "--bootloader", "none", "--karg", "root=LABEL=root", root); err != nil {
		return err
	}
	for _, s := range []struct{ say, args string }{
		{"What the host boots next", "status"},
		{"Switch to os:two: one small layer is fetched, everything else is there", "switch " + d.Registry.Repo("os:two")},
		{"The new root is next, the old one is kept", "status"},
		{"What the switch changes in files", "diff --files"},
		{"Nothing newer in the registry", "upgrade --check"},
		{"Roll back: the old root is next again, and one more rollback would undo that", "rollback"},
		{"", "status"},
		{"What happened to this host", "history"},
		{"Everything is as its checksum says", "fsck"},
	} {
		if s.say != "" {
			d.step(s.say)
		}
		if err := d.kedge(ctx, append([]string{"--sysroot", root}, strings.Fields(s.args)...)...); err != nil {
			return err
		}
	}
	return nil
}

// kedge runs kedge on this machine and shows what it prints.
func (d *demo) kedge(ctx context.Context, args ...string) error {
	fmt.Printf("$ kedge %s\n", strings.Join(args, " "))
	out, err := d.Run(ctx, args...)
	fmt.Print(indent(out))
	return err
}

// step announces what comes.
func (d *demo) step(what string) {
	d.steps++
	fmt.Printf("\n== %d. %s\n", d.steps, what)
}

func indent(s string) string {
	if s == "" {
		return ""
	}
	return "    " + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n    ") + "\n"
}
