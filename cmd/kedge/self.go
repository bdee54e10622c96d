package main

import (
	"context"

	"github.com/urfave/cli/v2"
)

func cmdSelf(e *env) *cli.Command {
	return &cli.Command{
		Name:        "self",
		Usage:       "install kedge on a host whose image does not have it",
		Description: "A host that bootc or rpm-ostree installed is driven by kedge after `kedge self install`.",
		UsageText:   "kedge self install",
		Subcommands: []*cli.Command{{
			Name:  "install",
			Usage: "put this program and its units on the host",
			Description: "Copies the running program to /var/lib/kedge/bin and its units to /etc/systemd/system.\n" +
				"/var and changes to /etc are kept by switch, upgrade and rollback, so both survive images\n" +
				"that do not have kedge. An image that has kedge takes over: its own unit is used then.",
			UsageText: "kedge self install",
			Action:    withoutOperands(func(c *cli.Context) error { return runSelfInstall(c.Context, e) }),
		}, cmdSelfUnits(e)},
	}
}

func runSelfInstall(ctx context.Context, e *env) error {
	h, err := e.open(ctx, true)
	if err != nil {
		return err
	}
	defer h.Close()
	paths, err := h.SelfInstall(ctx, buildVersion())
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(paths)
	}
	for _, p := range paths {
		if err := e.printf("Installed %s\n", p); err != nil {
			return err
		}
	}
	return nil
}
