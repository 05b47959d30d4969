"""From files to conversations: sources read records, formats turn each record into a conversation."""
