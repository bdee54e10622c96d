package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "github.com/kedge-os/kedge/api/v1"
)

// statusText is status for people. Its first line answers what somebody woken
// at night asks: what runs, and what will run after a reboot.
func statusText(e *env, h *v1.Host) string {
	var b strings.Builder
	s := &h.Status
	fmt.Fprintln(&b, e.paint(bold, headline(e.sysroot, s)))
	if s.Kedge != nil {
		if s.Kedge.FinalizeFailure != "" {
			fmt.Fprintf(&b, "%s the staged deployment was not put in place at the last shutdown: %s\n",
				e.paint(bold+red, "failed:"), oneLine(s.Kedge.FinalizeFailure))
		}
		if s.Kedge.LastRollback != nil {
			b.WriteString(rollbackText(s.Kedge.LastRollback))
		}
		if a := s.Kedge.AutoRollback; a != nil && a.State == v1.RollbackUnsupported {
			b.WriteString(autoRollbackText(a))
		}
		for _, w := range s.Kedge.Warnings {
			fmt.Fprintf(&b, "%s %s\n", e.paint(bold+yellow, "warning:"), oneLine(w))
		}
	}
	if o := s.UsrOverlay; o != nil {
		until := map[string]string{"transient": "gone with the reboot", "persistent": "kept over reboots"}[o.Persistence]
		fmt.Fprintf(&b, "%s /usr has an overlay (%s), %s\n", e.paint(bold+yellow, "unlocked:"), o.AccessMode, until)
	}
	for _, r := range rows(s) {
		b.WriteByte('\n')
		writeEntry(&b, e, r)
	}
	return b.String()
}

type row struct {
	role  string
	entry *v1.BootEntry
}

// rows lists the entries as the boot menu does: what boots next comes first.
func rows(s *v1.HostStatus) []row {
	var all []row
	add := func(role string, entry *v1.BootEntry) {
		if entry != nil {
			all = append(all, row{role, entry})
		}
	}
	add("staged", s.Staged)
	add("booted", s.Booted)
	add("rollback", s.Rollback)
	for i := range s.OtherDeployments {
		entry := &s.OtherDeployments[i]
		role := "kept"
		if entry.Kedge != nil && entry.Kedge.Next {
			role = "default"
		}
		add(role, entry)
	}
	slices.SortStableFunc(all, func(a, b row) int { return order(a) - order(b) })
	return all
}

func order(r row) int {
	switch {
	case r.role == "staged":
		return -1
	case r.entry.Kedge == nil:
		return 0
	}
	return r.entry.Kedge.Index
}

func headline(sysroot string, s *v1.HostStatus) string {
	next := nextEntry(s)
	switch {
	case s.Booted == nil && next == nil:
		return fmt.Sprintf("Nothing is deployed in %s.", sysroot)
	case s.Booted == nil:
		return fmt.Sprintf("%s is not booted. Its next boot takes %s.", sysroot, describe(next))
	case s.Staged != nil && s.Staged.DownloadOnly:
		return fmt.Sprintf("Running %s. Downloaded, and waiting for `kedge upgrade --from-downloaded`: %s.", describe(s.Booted), describe(s.Staged))
	case s.Staged != nil:
		return fmt.Sprintf("Running %s. The next reboot changes to %s.", describe(s.Booted), describe(s.Staged))
	case s.RollbackQueued:
		return fmt.Sprintf("Running %s. The next reboot goes back to %s.", describe(s.Booted), describe(s.Rollback))
	case next != nil && next != s.Booted:
		return fmt.Sprintf("Running %s. The next reboot changes to %s.", describe(s.Booted), describe(next))
	}
	return fmt.Sprintf("Running %s. The next reboot changes nothing.", describe(s.Booted))
}

func nextEntry(s *v1.HostStatus) *v1.BootEntry {
	for _, r := range rows(s) {
		if r.entry.Kedge != nil && r.entry.Kedge.Next {
			return r.entry
		}
	}
	return nil
}

// describe names a deployment in a sentence.
func describe(entry *v1.BootEntry) string {
	name, version := "a root that is no container image", ""
	if k := entry.Kedge; k != nil {
		version = k.Version
		if k.Origin != "" {
			name = k.Origin
		}
	}
	if entry.Image != nil {
		name = imageName(entry.Image.Image)
	}
	if version != "" {
		name += " version " + version
	}
	return oneLine(name)
}

func imageName(r v1.ImageReference) string {
	if r.Transport == "registry" {
		return r.Image
	}
	return r.Transport + ":" + r.Image
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

func writeEntry(b *strings.Builder, e *env, r row) {
	entry := r.entry
	marks := map[string]string{"booted": green, "staged": yellow, "default": green}
	title := imageTitle(entry)
	fmt.Fprintf(b, "%s %s\n", e.paint(bold+marks[r.role], fmt.Sprintf("%-9s", r.role)), oneLine(title))
	line := func(name, format string, args ...any) {
		if value := oneLine(fmt.Sprintf(format, args...)); value != "" {
			fmt.Fprintf(b, "  %-9s %s\n", name+":", value)
		}
	}
	if i := entry.Image; i != nil {
		version := ""
		if i.Version != nil {
			version = *i.Version + " "
		}
		if i.Timestamp != nil {
			version += "(built " + i.Timestamp.UTC().Format(time.DateTime) + " UTC)"
		}
		line("version", "%s", version)
		line("digest", "%s", i.ImageDigest)
	}
	k := entry.Kedge
	if k == nil {
		return
	}
	if entry.Image == nil {
		line("version", "%s", k.Version)
		line("digest", "%s", k.Digest)
	}
	if p := k.Packages; p != nil {
		line("packages", "%s", packagesText(p))
		for _, o := range p.LeftOut {
			fmt.Fprintf(b, "  %s %s\n", e.paint(bold+yellow, "degraded:"), oneLine(o.Name+" is left out: "+o.Reason))
		}
	}
	b.WriteString(packageLines(k.PackageChanges, "  "))
	if i := k.Initramfs; i != nil {
		line("initrd", "%s", strings.TrimSpace("made on this host "+strings.Join(i.Args, " ")))
	}
	if k.SignedHere {
		line("kernel", "unified kernel image made and signed on this host")
	}
	if i := k.BaseImage; i != nil {
		line("base", "%s", i.ImageDigest)
	}
	line("kargs", "%s", strings.Join(k.Kargs, " "))
	if k.Health != nil {
		line("health", "%s", healthText(k.Health))
	}
	if k.Tries != nil {
		line("tries", "%d left, %d done", k.Tries.Left, k.Tries.Done)
	}
	if k.Held != "" {
		line("held", "%s", k.Held)
	}
	var notes []string
	if k.Next {
		notes = append(notes, "next boot")
	}
	if entry.Pinned {
		notes = append(notes, "pinned")
	}
	if entry.DownloadOnly {
		notes = append(notes, "downloaded only")
	}
	line("index", "%s", strings.Join(append([]string{fmt.Sprint(k.Index)}, notes...), ", "))
	line("id", "%s", k.ID)
	if u := entry.CachedUpdate; u != nil && (entry.Image == nil || u.ImageDigest != entry.Image.ImageDigest) {
		line("update", "%s", strings.TrimSpace(deref(u.Version)+" "+u.ImageDigest))
	}
}

func imageTitle(entry *v1.BootEntry) string {
	switch {
	case entry.Image != nil:
		return imageName(entry.Image.Image)
	case entry.Kedge != nil && entry.Kedge.Origin != "":
		return entry.Kedge.Origin
	}
	return "(no container image)"
}

func packagesText(p *v1.Packages) string {
	var parts []string
	for _, g := range []struct {
		word  string
		names []string
	}{{"requested", p.Requested}, {"layered", first(p.Layered)}, {"inactive", p.Inactive}, {"removed", p.Removed}, {"replaced", p.Replaced}} {
		if len(g.names) > 0 {
			parts = append(parts, g.word+" "+strings.Join(g.names, ", "))
		}
	}
	return strings.Join(parts, "; ")
}

// first are the first few of what packages bring with them, and how many more.
func first(layered []string) []string {
	const most = 8
	if len(layered) <= most {
		return layered
	}
	return append(slices.Clone(layered[:most]), fmt.Sprintf("and %d more", len(layered)-most))
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
