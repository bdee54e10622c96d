package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/kedge-os/kedge/pkg/host"
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
	install := func(h *host.Host, ctx context.Context) ([]string, error) { return h.SelfInstall(ctx, buildVersion()) }
	return show(ctx, e, true, install, func(paths []string) string {
		var b strings.Builder
		for _, p := range paths {
			fmt.Fprintf(&b, "Installed %s\n", p)
		}
		return b.String()
	})
}
