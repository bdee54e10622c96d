package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/internal/mountns"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/host"
)

// config is how pkg/host is to work for this command line.
func (e *env) config() host.Config {
	return host.Config{Sysroot: e.sysroot, Log: e.log, ComposefsTool: e.tool}
}

// enter gives this process mounts of its own on a booted host, where /sysroot
// and /boot may be read-only for everybody else. The program starts again
// there, so nothing may have been done before.
func (e *env) enter() error {
	for _, booted := range []string{"/run/ostree-booted", "/sysroot/state/deploy"} {
		if _, err := os.Stat(booted); err == nil {
			return mountns.Enter()
		}
	}
	return nil
}

// open opens the host to read it, or to change it.
func (e *env) open(ctx context.Context, write bool) (*host.Host, error) {
	cfg := e.config()
	if write {
		if err := e.enter(); err != nil {
			return nil, err
		}
		cfg.Write = true
	}
	return host.Open(ctx, cfg)
}

// show opens the host, to read it or to change it without progress, asks it, and
// prints the answer.
func show[T any](ctx context.Context, e *env, write bool, ask func(*host.Host, context.Context) (T, error), text func(T) string) error {
	h, err := e.open(ctx, write)
	if err != nil {
		return err
	}
	defer h.Close()
	answer, err := ask(h, ctx)
	if err != nil {
		return err
	}
	return e.print(answer, func() string { return text(answer) })
}

// withHost opens the host and runs what reads it, or changes it with progress.
func (e *env) withHost(ctx context.Context, write bool, op func(*host.Host) error) (err error) {
	cfg := e.config()
	if write {
		if err := e.enter(); err != nil {
			return err
		}
		p, perr := e.newProgress()
		if perr != nil {
			return perr
		}
		defer func() { p.Close(err == nil) }()
		cfg.Progress, cfg.Write = p, true
	}
	h, err := host.Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer h.Close()
	return op(h)
}

// change opens the host, runs one operation with progress, prints its result
// and, where asked to, reboots into it: also where it waited for a reboot before.
func (e *env) change(ctx context.Context, reboot bool, op func(context.Context, *host.Host) (*v1.Result, error)) error {
	var r *v1.Result
	err := e.withHost(ctx, true, func(h *host.Host) (err error) {
		if reboot && !h.Booted() {
			return fault.New(fault.Usage, "leave --apply out", "--apply: %s is not booted", e.sysroot)
		}
		if r, err = op(ctx, h); err == nil {
			reboot = reboot && (r.Changed && !r.DownloadOnly || h.Waits(r.ID))
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := e.printResult(r); err != nil {
		return err
	}
	if reboot {
		if ctx.Err() != nil {
			// The operation is done, and that is what counts.
			return e.printf("Interrupted: the host is not rebooted.\n")
		}
		return host.Reboot(ctx)
	}
	return nil
}

// changeOptions are those of verbs that change the next boot and nothing else.
type changeOptions struct {
	Apply       bool
	Unchanged77 bool
}

func (o *changeOptions) AddFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "apply", Usage: "reboot into the change", Destination: &o.Apply},
		&cli.BoolFlag{Name: "unchanged-exit-77", Usage: "exit with 77 where nothing changed", Destination: &o.Unchanged77},
	}
}

// change is env.change as the options say.
func (o changeOptions) change(ctx context.Context, e *env, op func(context.Context, *host.Host) (*v1.Result, error)) error {
	var result *v1.Result
	err := e.change(ctx, o.Apply, func(ctx context.Context, h *host.Host) (r *v1.Result, err error) {
		result, err = op(ctx, h)
		return result, err
	})
	if err != nil {
		return err
	}
	return unchanged(result, o.Unchanged77)
}

func (e *env) printResult(r *v1.Result) error {
	if e.json {
		return e.printJSON(r)
	}
	for _, w := range r.Warnings {
		fmt.Fprintf(e.stderr, "%s %s\n", e.paint(bold+yellow, "warning:"), oneLine(w))
	}
	if len(r.Etc) > 0 {
		fmt.Fprintf(e.stderr, "%s changed in /etc on this host and in the image:\n%s", e.paint(bold+yellow, "warning:"), etcConflictsText("  ", r.Etc))
	}
	return e.printf("%s\n", resultText(e.sysroot, r))
}

func resultText(sysroot string, r *v1.Result) string {
	what := r.ID
	if r.Image != nil {
		what = strings.TrimSpace(imageName(r.Image.Image)+" "+deref(r.Image.Version)) + " (" + r.Image.ImageDigest + ")"
	}
	what = oneLine(what)
	switch {
	case !r.Changed:
		return "No change: " + what + "."
	case r.DownloadOnly:
		return "Downloaded " + what + ". Run `kedge upgrade --from-downloaded` to boot it next."
	case r.Staged:
		return "Staged " + what + ". It takes effect at the next reboot."
	case sysroot == "/" || sysroot == "":
		return "The next boot takes " + what + "."
	}
	return "The next boot of " + sysroot + " takes " + what + "."
}

// unchanged turns an operation that changed nothing into exit status 77 where
// that was asked for.
func unchanged(r *v1.Result, asked bool) error {
	if asked && !r.Changed {
		return fault.New(fault.Unchanged, "", "nothing changed")
	}
	return nil
}
