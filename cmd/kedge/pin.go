package main

import (
	"context"

	"github.com/urfave/cli/v2"
)

func cmdPin(e *env) *cli.Command {
	return &cli.Command{
		Name:        "pin",
		Usage:       "keep a deployment until it is unpinned",
		ArgsUsage:   "INDEX",
		Description: "A pinned deployment stays in the boot menu whatever is deployed after it.",
		UsageText:   "kedge pin 0",
		Action:      pinAction(e, true),
	}
}

func cmdUnpin(e *env) *cli.Command {
	return &cli.Command{
		Name:        "unpin",
		Usage:       "let a pinned deployment go",
		ArgsUsage:   "INDEX",
		Description: "The deployment is removed when it is neither booted, next nor the one to roll back to.",
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
	h, err := e.open(ctx, true)
	if err != nil {
		return err
	}
	defer h.Close()
	r, err := h.Pin(ctx, index, pinned)
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(r)
	}
	word := "pinned"
	if !pinned {
		word = "not pinned"
	}
	if !r.Changed {
		return e.printf("No change: %s is %s.\n", r.ID, word)
	}
	return e.printf("%s is now %s.\n", r.ID, word)
}
