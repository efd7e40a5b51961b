package main

import "testing"

// The gossip is where the managers tell the others that it is, also where the
// node's two addresses differ.
func TestGossipAddress(t *testing.T) {
	id, _ := newIdentity(t)
	if id.DataPath == id.Advertise {
		t.Fatal("this test needs two addresses")
	}
	m := &member{options: options{GossipPort: 7950}, id: id}
	c := m.gossipConfig(nil)
	if c.Addr != id.DataPath || c.Port != 7950 || c.Node != id.NodeID || c.Boot != id.Boot {
		t.Errorf("got %+v", c)
	}
}
