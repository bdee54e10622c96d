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
		Description: "Removes left-overs of interrupted runs, objects that no deployment and no image needs,\n" +
			"and kernels without a boot entry. The booted, the next and pinned deployments stay.",
		UsageText: "kedge cleanup --rollback",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "rollback", Usage: "remove the deployment that rollback would lead to, too", Destination: &opts.Rollback},
			&cli.BoolFlag{Name: "staged", Usage: "discard the staged deployment, too", Destination: &opts.Staged},
		},
		Action: withoutOperands(func(c *cli.Context) error { return runCleanup(c.Context, e, opts) }),
	}
}

func runCleanup(ctx context.Context, e *env, opts host.CleanupOptions) error {
	cleanup := func(h *host.Host, ctx context.Context) (*v1.Cleanup, error) { return h.Cleanup(ctx, opts) }
	return show(ctx, e, true, cleanup, func(r *v1.Cleanup) string {
		var b strings.Builder
		for _, id := range r.Deployments {
			fmt.Fprintf(&b, "Removed deployment %s\n", id)
		}
		fmt.Fprintf(&b, "Removed %s (%s)\n", count(r.Objects, "object"), size(r.Bytes))
		return b.String()
	})
}
