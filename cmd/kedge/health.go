package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/host"
)

func cmdHealth(e *env) *cli.Command {
	return &cli.Command{
		Name:  "health",
		Usage: "show how boots went, and what is held back for that",
		Description: "After each boot the checks in /usr/lib/kedge/health.d and /etc/kedge/health.d are run, and\n" +
			"greenboot's. A boot that fails is tried again or given up by a boot loader that counts, and\n" +
			"what failed is not taken by upgrade and switch any more.",
		UsageText: "kedge health status",
		Subcommands: []*cli.Command{
			{
				Name:  "status",
				Usage: "show how the last boot went and whether a bad one would be undone",
				Description: "Shows the checks that did not pass, whether the boot loader goes back by itself, who went\n" +
					"back last and why, and what is held.",
				UsageText: "kedge health status --json",
				Action:    withoutOperands(func(c *cli.Context) error { return runHealthStatus(c.Context, e) }),
			},
			{
				Name:  "mark-good",
				Usage: "take the deployment that runs for good, whatever its checks said",
				Description: "Records that it is good, lets it out of quarantine, and has the boot loader count its boots\n" +
					"no longer. On a sysroot that is not booted it is about the default.",
				UsageText: "kedge health mark-good",
				Action:    withoutOperands(func(c *cli.Context) error { return runMarkGood(c.Context, e) }),
			},
			cmdQuarantine(e),
		},
	}
}

func cmdQuarantine(e *env) *cli.Command {
	return &cli.Command{
		Name:        "quarantine",
		Usage:       "show or clear what upgrade and switch do not take",
		Description: "A root is known by its image, its packages, its kernel arguments and its initramfs.",
		UsageText:   "kedge health quarantine list",
		Subcommands: []*cli.Command{
			{
				Name:  "list",
				Usage: "list what is held, and why",
				Description: "What failed on this host is held from upgrade and switch; what was rolled back by hand\n" +
					"from upgrade alone. kedge deploy takes either.",
				UsageText: "kedge health quarantine list --json",
				Action:    withoutOperands(func(c *cli.Context) error { return runQuarantineList(c.Context, e) }),
			},
			{
				Name:        "clear",
				Usage:       "let go what is held",
				ArgsUsage:   "[NAME]...",
				Description: "A NAME is a key, the digest of an image or a deployment, as list shows them; without one all\nis let go.",
				UsageText:   "kedge health quarantine clear",
				Action:      func(c *cli.Context) error { return runQuarantineClear(c.Context, e, c.Args().Slice()) },
			},
		},
	}
}

func runHealthStatus(ctx context.Context, e *env) error {
	return show(ctx, e, false, (*host.Host).HealthStatus, func(s *v1.HealthStatus) string { return healthStatusText(e, s) })
}

func runMarkGood(ctx context.Context, e *env) error {
	return e.change(ctx, false, func(ctx context.Context, h *host.Host) (*v1.Result, error) { return h.MarkGood(ctx) })
}

func runQuarantineList(ctx context.Context, e *env) error {
	return show(ctx, e, false, (*host.Host).Quarantine, func(list []v1.Quarantined) string {
		if len(list) == 0 {
			return "Nothing is held.\n"
		}
		return quarantineText(list)
	})
}

func runQuarantineClear(ctx context.Context, e *env, names []string) error {
	clearNames := func(h *host.Host, ctx context.Context) ([]v1.Quarantined, error) {
		return h.ClearQuarantine(ctx, names...)
	}
	return show(ctx, e, true, clearNames, func(gone []v1.Quarantined) string {
		if len(gone) == 0 {
			return "No change: nothing was held.\n"
		}
		return "Let go:\n" + quarantineText(gone)
	})
}

func quarantineText(list []v1.Quarantined) string {
	var rows [][]string
	for _, q := range list {
		rows = append(rows, []string{q.Key, q.Time.UTC().Format(time.DateTime), q.Reason, q.Origin, q.Version, q.Check})
	}
	return columns(rows)
}

// healthStatusText says in its first line whether the last boot was good.
func healthStatusText(e *env, s *v1.HealthStatus) string {
	var b strings.Builder
	if s.Current == nil {
		fmt.Fprintln(&b, e.paint(bold, "No boot of this deployment has been judged."))
	} else {
		fmt.Fprintln(&b, e.paint(bold, capital(healthText(s.Current)))+".")
		for _, w := range s.Current.Warnings {
			fmt.Fprintf(&b, "%s %s\n", e.paint(bold+yellow, "warning:"), oneLine(w))
		}
		for _, c := range s.Current.Checks {
			kind := "wanted"
			if c.Required {
				kind = "required"
			}
			fmt.Fprintf(&b, "  %s (%s): %s\n", oneLine(c.Path), kind, oneLine(strings.TrimSpace(c.Outcome+" "+c.Status)))
			for line := range strings.Lines(c.Output) {
				fmt.Fprintf(&b, "    %s\n", oneLine(line))
			}
		}
	}
	b.WriteString(autoRollbackText(&s.AutoRollback))
	if s.LastRollback != nil {
		b.WriteString(rollbackText(s.LastRollback))
	}
	if len(s.Quarantine) > 0 {
		b.WriteString("Held from upgrades:\n" + quarantineText(s.Quarantine))
	}
	return b.String()
}

// healthText is one line about a verdict.
func healthText(h *v1.Health) string {
	text := fmt.Sprintf("%s at %s UTC", h.State, h.Time.UTC().Format(time.DateTime))
	if h.Passed > 0 || len(h.Checks) > 0 {
		text += fmt.Sprintf(", %d checks passed", h.Passed)
	}
	warned := 0
	for _, c := range h.Checks {
		if c.Path != h.Check && c.Outcome != v1.CheckNotRun && c.Outcome != v1.CheckDisabled {
			warned++
		}
	}
	if warned > 0 {
		text += fmt.Sprintf(", %d with a warning", warned)
	}
	if h.Reason != "" {
		text += ": " + h.Reason
	}
	return oneLine(text)
}

func autoRollbackText(a *v1.AutoRollback) string {
	if a.Reason == "" {
		return fmt.Sprintf("autoRollback: %s\n", a.State)
	}
	return oneLine(fmt.Sprintf("autoRollback: %s (%s)", a.State, a.Reason)) + "\n"
}

func rollbackText(r *v1.RollbackRecord) string {
	from := strings.TrimSpace(r.FromVersion + " " + r.FromDigest)
	if from == "" {
		from = r.From
	}
	text := fmt.Sprintf("Rolled back from %s at %s UTC by the %s", from, r.Time.UTC().Format(time.DateTime), r.By)
	if r.Reason != v1.HeldByHand {
		text += fmt.Sprintf(": %s: %s", r.Reason, r.Detail)
	}
	return oneLine(text) + "\n"
}
