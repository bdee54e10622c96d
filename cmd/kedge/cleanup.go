package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/host"
)

func cmdCleanup(e *env) *cli.Command {
	var opts host.CleanupOptions
	return &cli.Command{
		Name:  "cleanup",
		Usage: "remove what nothing needs any more",
		Description: "Removes deployments that the retention policy lets go (retention.toml in /usr/lib/kedge\n" +
			"and /etc/kedge), left-overs of interrupted runs, objects that no deployment and no image\n" +
			"needs, and kernels without a boot entry. The booted and the next deployment stay, and\n" +
			"pinned ones.",
		UsageText: "kedge cleanup --dry-run",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "rollback", Usage: "remove the deployment that rollback would lead to, too", Destination: &opts.Rollback},
			&cli.BoolFlag{Name: "dry-run", Usage: "say which deployments would be removed and why, and write nothing", Destination: &opts.DryRun},
			&cli.BoolFlag{Name: "staged", Usage: "discard the staged deployment, too", Destination: &opts.Staged},
		},
		Action: withoutOperands(func(c *cli.Context) error { return runCleanup(c.Context, e, opts) }),
	}
}

func runCleanup(ctx context.Context, e *env, opts host.CleanupOptions) error {
	cleanup := func(h *host.Host, ctx context.Context) (*v1.Cleanup, error) { return h.Cleanup(ctx, opts) }
	return show(ctx, e, !opts.DryRun, cleanup, cleanupText)
}

func cleanupText(r *v1.Cleanup) string {
	var b strings.Builder
	for _, w := range r.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", oneLine(w))
	}
	verb := "Removed"
	if r.DryRun {
		verb = "Would remove"
	}
	for _, d := range r.Removed {
		fmt.Fprintf(&b, "%s deployment %s\n", verb, removedText(d))
	}
	switch {
	case !r.DryRun:
		fmt.Fprintf(&b, "Removed %s (%s)\n", count(r.Objects, "object"), size(r.Bytes))
	case len(r.Removed) == 0:
		b.WriteString("No deployment would be removed.\n")
	}
	return b.String()
}

// removedText says which deployment goes, and why.
func removedText(d v1.RemovedDeployment) string {
	text := d.ID
	if d.Version != "" {
		text += " (" + d.Version + ")"
	}
	text += ": " + d.Reason
	if d.IfNeeded {
		text += ", if need be"
	}
	return oneLine(text)
}
