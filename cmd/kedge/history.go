package main

import (
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/host"
)

func cmdHistory(e *env) *cli.Command {
	var deployments bool
	return &cli.Command{
		Name:  "history",
		Usage: "show every change of the deployments and every boot, newest first",
		Description: "Read from the sysroot's own record, which each change adds a line to, and each boot with\n" +
			"its result. With --deployments, one line for each deployment that is or was there: when and\n" +
			"why it was made, how its last boot was judged, and when and why it went.",
		UsageText: "kedge history --deployments",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "deployments", Usage: "show deployments, removed ones too, in place of changes", Destination: &deployments},
		},
		Action: withoutOperands(func(c *cli.Context) error {
			if deployments {
				return show(c.Context, e, false, (*host.Host).HistoryOfDeployments, deploymentHistoryText)
			}
			return show(c.Context, e, false, (*host.Host).History, historyText)
		}),
	}
}

func deploymentHistoryText(list []v1.DeploymentHistory) string {
	rows := [][]string{{"MADE", "BY", "STATE", "BOOT", "IMAGE", "VERSION", "DIGEST", ""}}
	for _, d := range list {
		by := d.Reason
		if by == "" {
			by = "another program"
		}
		boot := d.Result
		if boot == v1.ResultNone {
			boot = "-"
		}
		var notes []string
		if d.Detail != "" {
			notes = append(notes, d.Detail)
		}
		if d.RemovedBecause != "" {
			when := ""
			if d.Removed != nil {
				when = " " + d.Removed.UTC().Format(time.DateTime)
			}
			notes = append(notes, "removed"+when+": "+d.RemovedBecause)
		}
		rows = append(rows, []string{d.Made.UTC().Format(time.DateTime), by, d.State, boot, d.Image, d.Version, shortDigest(d.Digest), strings.Join(notes, "; ")})
	}
	return columns(rows)
}

func shortDigest(digest string) string {
	digest = strings.TrimPrefix(digest, "sha256:")
	return digest[:min(12, len(digest))]
}

func historyText(entries []v1.HistoryEntry) string {
	var rows [][]string
	for _, h := range entries {
		row := []string{h.Time.UTC().Format(time.DateTime), h.Verb, h.Result, h.Image, h.Version, shortDigest(h.Digest)}
		if h.Detail != "" {
			row = append(row, h.Detail)
		}
		rows = append(rows, row)
	}
	return columns(rows)
}
