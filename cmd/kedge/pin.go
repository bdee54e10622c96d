package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v2"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/host"
)

func cmdPin(e *env) *cli.Command {
	return &cli.Command{
		Name:        "pin",
		Usage:       "keep a deployment until it is unpinned",
		ArgsUsage:   "INDEX",
		Description: "A pinned deployment stays in the boot menu whatever is deployed after it, and whatever the\nretention policy says.",
		UsageText:   "kedge pin 0",
		Action:      pinAction(e, true),
	}
}

func cmdUnpin(e *env) *cli.Command {
	return &cli.Command{
		Name:        "unpin",
		Usage:       "let a pinned deployment go",
		ArgsUsage:   "INDEX",
		Description: "The deployment goes when the retention policy says so: by default when it is neither booted,\nnext nor the one to roll back to.",
		UsageText:   "kedge unpin 2",
		Action:      pinAction(e, false),
	}
}

func pinAction(e *env, pinned bool) cli.ActionFunc {
	return func(c *cli.Context) error {
		index, err := indexOperand(c)
		if err != nil {
			return err
		}
		return runPin(c.Context, e, index, pinned)
	}
}

func runPin(ctx context.Context, e *env, index int, pinned bool) error {
	pin := func(h *host.Host, ctx context.Context) (*v1.Result, error) { return h.Pin(ctx, index, pinned) }
	word := "pinned"
	if !pinned {
		word = "not pinned"
	}
	return show(ctx, e, true, pin, func(r *v1.Result) string {
		if !r.Changed {
			return fmt.Sprintf("No change: %s is %s.\n", r.ID, word)
		}
		return fmt.Sprintf("%s is now %s.\n", r.ID, word)
	})
}
