package layering

import (
	"encoding/binary"
	"net"
	"strings"
)

// journalSocket is where systemd's journal takes messages.
const journalSocket = "/run/systemd/journal/socket"

// journal sends what a transaction said to the journal, a message a line, where
// there is one: journalctl -t kedge-packages shows it. Losing it is no failure.
func (s *Session) journal(output string, failed bool) {
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Net: "unixgram", Name: s.opt.Journal})
	if err != nil {
		return
	}
	defer c.Close()
	priority := "6"
	if failed {
		priority = "4"
	}
	for line := range strings.Lines(output) {
		if line = strings.TrimRight(line, "\r\n"); line == "" {
			continue
		}
		if _, err := c.Write(journalMessage(line, priority)); err != nil {
			s.log.Debug("the journal does not take the packages' output", "error", err)
			return
		}
	}
}

// journalMessage is a message in the journal's own form (systemd,
// docs/JOURNAL_NATIVE_PROTOCOL): NAME=VALUE lines, and for what could have
// anything in it the length, little-endian, before the value.
func journalMessage(line, priority string) []byte {
	b := []byte("SYSLOG_IDENTIFIER=kedge-packages\nPRIORITY=" + priority + "\nMESSAGE\n")
	b = binary.LittleEndian.AppendUint64(b, uint64(len(line)))
	return append(append(b, line...), '\n')
}
