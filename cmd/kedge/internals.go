package main

import (
	"context"

	"github.com/urfave/cli/v2"

	"github.com/kedge-os/kedge/pkg/host"
)

// cmdInternals are what kedge's units run (pkg/boot/units).
func cmdInternals(e *env) *cli.Command {
	return &cli.Command{
		Name:   "internals",
		Hidden: true,
		Usage:  "what kedge's own units run",
		Subcommands: []*cli.Command{
			internal(e, "finalize-staged", "put the staged deployment in place, at shutdown", (*host.Host).Finalize),
			internal(e, "boot-complete", "say what became of the last finalisation, after boot", (*host.Host).BootComplete),
			internalCheckHealth(e),
			internal(e, "judge-boot", "record what came of the checks; fails where the boot did", (*host.Host).JudgeBoot),
			internal(e, "bless-boot", "have the boot loader count a root no longer that booted well", (*host.Host).BlessBoot),
			internal(e, "boot-failed", "reboot after a failed boot, where that leads somewhere else", (*host.Host).BootFailed),
			internal(e, "publish", "write /run/kedge/status.json for users that cannot read the sysroot", (*host.Host).Publish),
		},
	}
}

// internalCheckHealth opens no sysroot and makes no mounts.
func internalCheckHealth(e *env) *cli.Command {
	return &cli.Command{
		Name: "check-health", Usage: "run the checks, after boot",
		Action: withoutOperands(func(c *cli.Context) error { return host.CheckHealth(c.Context, e.config()) }),
	}
}

func internal(e *env, name, usage string, do func(*host.Host, context.Context) error) *cli.Command {
	return &cli.Command{
		Name: name, Usage: usage,
		Action: withoutOperands(func(c *cli.Context) error { return runInternal(c.Context, e, do) }),
	}
}

func runInternal(ctx context.Context, e *env, do func(*host.Host, context.Context) error) error {
	h, err := e.open(ctx, true)
	if err != nil {
		return err
	}
	defer h.Close()
	return do(h, ctx)
}
